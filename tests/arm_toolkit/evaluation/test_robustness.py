"""The ImageNet robustness sets in miniature, each in its public layout, and the tool that evaluates them."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import model_entrypoint

from arm_backbone.checkpoint.files import write_checkpoint
from arm_images.errors import DataError
from arm_toolkit.datasets.imagenet_sets import SetNotFound, class_indices, open_set
from arm_toolkit.errors import ConfigError
from arm_toolkit.evaluation.robustness import eval_transform, load_classifier, top1
from tests.helpers.tools import call_tool, invoke

MODEL = "arm_tiny_patch16_224"
V2 = "imagenetv2-matched-frequency-format-val"
NORM = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]  # mean and standard deviation per channel
TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"  # classes 0, 1, 2


def picture(path: Path, value: int = 128, mode: str = "RGB") -> Path:
    """Write a tiny image of one grey value, always as PNG: lossless, whatever the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).convert(mode).save(path, "png")
    return path


def value_of(image: Image.Image) -> torch.Tensor:
    """A transform that returns the first pixel, (3, 1, 1)."""
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.float32)[:, None, None]


def prefers(*ranking: int, classes: int = 1000):
    """A model that ranks these classes first for every image."""

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), classes)
        logits[:, list(ranking)] = torch.arange(len(ranking), 0.0, -1)
        return logits

    return logits_of


def sees_class(images: torch.Tensor) -> torch.Tensor:
    """A model that predicts an image's grey value as its class."""
    return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 1000).float()


def real_json(root: Path, *labels: list[int]) -> None:
    (root / "real.json").write_text(json.dumps([*labels, *([] for _ in range(50_000 - len(labels)))]))


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


# ---------------------------------------------------------------------------- what each set means


def test_classes_are_the_sorted_wnids():
    wnids = list(class_indices())
    assert wnids == sorted(wnids) and len(wnids) == 1000
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    assert [class_indices()[wnid] for wnid in (TENCH, GOLDFISH, SHARK, "n15075141")] == [0, 1, 2, 999]


def test_v2_folders_are_class_numbers(tmp_path):
    """Sorted as strings, folder 10 would come before folder 2."""
    for i in (0, 2, 10, 200):
        picture(tmp_path / V2 / str(i) / "a.jpeg", i)
    dataset = open_set("v2", tmp_path, value_of)
    assert [labels for _, labels in dataset.samples] == [(0,), (2,), (10,), (200,)]
    assert top1(dataset, sees_class, batch_size=3) == 100
    assert top1(dataset, prefers(10)) == 25
    assert top1(dataset, prefers(1, 10)) == 0


def test_real_counts_any_of_several_labels_and_no_image_without(tmp_path):
    real_json(tmp_path, [5, 7], [], [9], [7])
    for i in range(1, 5):
        picture(tmp_path / "val" / val_name(i))
    dataset = open_set("real", tmp_path, value_of)
    assert [(path.name, labels) for path, labels in dataset.samples] == [
        (val_name(1), (5, 7)),
        (val_name(3), (9,)),
        (val_name(4), (7,)),
    ]
    assert dataset.published == 3
    assert top1(dataset, prefers(7)) == pytest.approx(200 / 3)
    assert top1(dataset, prefers(5)) == pytest.approx(100 / 3)
    assert top1(dataset, prefers(0, 5, 7, 9)) == 0  # only the most likely class counts


def test_real_images_may_lie_in_class_folders_elsewhere(tmp_path):
    """The number in an image's name selects its label, not the order of the files."""
    real_json(tmp_path, [1], [2], [3])
    for number, wnid in ((1, SHARK), (2, TENCH), (3, GOLDFISH)):
        picture(tmp_path / "elsewhere" / wnid / val_name(number), number)
    (tmp_path / "elsewhere" / "ILSVRC2012_val_labels.txt").write_text("no picture")
    dataset = open_set("real", tmp_path, value_of, val=tmp_path / "elsewhere")
    assert len(dataset) == 3 and top1(dataset, sees_class) == 100


@pytest.mark.parametrize(("name", "folder"), [("a", "imagenet-a"), ("r", "imagenet-r")])
def test_a_and_r_are_judged_among_their_own_classes(name, folder, tmp_path):
    picture(tmp_path / folder / TENCH / "a.jpg")
    for i in range(3):
        picture(tmp_path / folder / SHARK / f"{i}.jpg")
    (tmp_path / folder / "README.txt").write_text("as in the archive")
    dataset = open_set(name, tmp_path, value_of)
    assert dataset.classes == [0, 2]
    assert top1(dataset, prefers(1, 999, 2, 0)) == 75  # classes 1 and 999 are not in the set
    assert top1(dataset, prefers(1, 999, 0, 2)) == 25


@pytest.mark.parametrize(
    ("name", "folder"), [("sketch", "sketch"), ("sketch", "imagenet-sketch"), ("val", "val"), ("val", "elsewhere")]
)
def test_sketch_and_val_are_judged_among_all_classes(name, folder, tmp_path):
    picture(tmp_path / folder / TENCH / "a.JPEG")
    picture(tmp_path / folder / SHARK / "b.JPEG")
    picture(tmp_path / folder / SHARK / "._b.JPEG")  # a metadata file of macOS
    dataset = open_set(name, tmp_path, value_of, tmp_path / folder if folder == "elsewhere" else None)
    assert len(dataset) == 2
    assert top1(dataset, prefers(2)) == 50
    assert top1(dataset, prefers(1, 2)) == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_every_image_becomes_rgb(mode, tmp_path):
    path = picture(tmp_path / "val" / SHARK / "a.jpg", 2, "L" if mode == "CMYK" else mode)
    if mode == "CMYK":  # PNG has no CMYK
        Image.new("CMYK", (8, 8), (0, 0, 0, 253)).save(path, "tiff")
    image, right = open_set("val", tmp_path, value_of)[0]
    assert image.flatten().tolist() == [2, 2, 2]
    assert right.nonzero().tolist() == [[2]]


def test_preprocessing_squashes_or_keeps_the_ratio():
    """The left fifth of a wide image is white: visible when squashed, but outside the centre crop."""
    model = timm.create_model(MODEL)
    image = Image.new("RGB", (500, 100))
    image.paste((255, 255, 255), (0, 0, 100, 100))
    squashed, kept = eval_transform(model)(image), eval_transform(model, keep_ratio=True)(image)
    assert squashed.shape == kept.shape == (3, 224, 224)
    black, white = (torch.tensor([(v - m) / s for m, s in NORM])[:, None, None] for v in (0.0, 1.0))
    torch.testing.assert_close(kept, black.expand_as(kept))
    # squashed to 256 pixels, white up to column 51.2; the crop begins at column 16
    torch.testing.assert_close(squashed[:, :, :32], white.expand(3, 224, 32))
    torch.testing.assert_close(squashed[:, :, 39:], black.expand(3, 224, 185))


# ---------------------------------------------------------------------------- what is refused


def refused(call, says: str) -> None:
    with pytest.raises(DataError) as error:
        call()
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["val", "v2", "a", "r", "sketch"])
def test_missing_and_empty_sets_name_the_folder(name, tmp_path):
    with pytest.raises(SetNotFound) as error:
        open_set(name, tmp_path, value_of)
    folder = re.search(rf"{tmp_path}/\S+", str(error.value))[0]
    assert f"{folder} " in str(error.value) and "does not exist; unpack" in str(error.value)
    Path(folder).mkdir()
    refused(lambda: open_set(name, tmp_path, value_of), f"{folder} has no class folders such as")
    empty = Path(folder, "7" if name == "v2" else TENCH)
    empty.mkdir()
    refused(lambda: open_set(name, tmp_path, value_of), f"{empty} has no images; unpack")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("v2", f"{V2}/1000"), ("v2", f"{V2}/{TENCH}"), ("v2", f"{V2}/07"), ("a", "imagenet-a/n00000001")],
)
def test_unknown_folders_are_named(name, folder, tmp_path):
    picture(tmp_path / folder / "a.jpg")
    picture(tmp_path / folder / ".." / ("7" if name == "v2" else TENCH) / "a.jpg")
    refused(lambda: open_set(name, tmp_path, value_of), f"{tmp_path / folder} is not a class of ImageNet-1k such as")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[1], [2", "is not a complete JSON file"),
        ("\udcff", "is not a complete JSON file"),
        ("{}", "holds a dict, not a list of 50000 lists"),
        ("[[1], [2]]", "holds a list of 2, not a list of 50000 lists"),
        (f"[[1], {', '.join(['3'] * 49_999)}]", "entry 2 is 3, not a list of classes 0 to 999"),
        (f"[[1], [1000]{', []' * 49_998}]", "entry 2 is [1000], not a list of classes 0 to 999"),
    ],
)
def test_broken_real_labels(content, says, tmp_path):
    picture(tmp_path / "val" / val_name(1))
    (tmp_path / "real.json").write_text(content, errors="surrogateescape")
    refused(lambda: open_set("real", tmp_path, value_of), f"{tmp_path / 'real.json'}")
    refused(lambda: open_set("real", tmp_path, value_of), says)


def test_real_without_labels_or_images(tmp_path):
    refused(lambda: open_set("real", tmp_path, value_of), f"{tmp_path / 'real.json'} does not exist; fetch")
    real_json(tmp_path, [1], [])
    refused(lambda: open_set("real", tmp_path, value_of), f"{tmp_path / 'val'} does not exist; unpack its images")
    picture(tmp_path / "val" / val_name(2))  # without labels
    refused(lambda: open_set("real", tmp_path, value_of), f"{tmp_path / 'val'} has no images ILSVRC2012_val_00000001")


def test_models_of_other_classes_are_refused(tmp_path):
    picture(tmp_path / "val" / TENCH / "a.jpg")
    with pytest.raises(ConfigError, match="the model has 21 classes, ImageNet val needs the 1000"):
        top1(open_set("val", tmp_path, value_of), prefers(0, classes=21))


# ---------------------------------------------------------------------------- the tool


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.create_model(MODEL).eval()
    torch.nn.init.normal_(model.head.weight)  # predictions without ties
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "classifier.pth"
    torch.save(model.state_dict(), path)
    return path


def predicted(model, path: Path, keep_ratio: bool) -> int:
    with Image.open(path) as image, torch.inference_mode():
        return int(model(eval_transform(model, keep_ratio)(image.convert("RGB"))[None]).argmax())


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without the line below its header."""
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set(":- ")]


def test_the_tool_end_to_end(model, checkpoint, tmp_path):
    """Class folders are named after the model's prediction for a wide image, squashed (V2) or cropped (val)."""
    noise = torch.randint(0, 256, (60, 180, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    wide = tmp_path / "wide.png"
    Image.fromarray(noise.numpy()).resize((720, 240), Image.Resampling.NEAREST).save(wide)
    squashed, cropped = (predicted(model, wide, keep_ratio) for keep_ratio in (False, True))
    assert squashed != cropped
    wnids = list(class_indices())
    data, out = tmp_path / "data", tmp_path / "new" / "table.json"
    for target in (f"{V2}/{squashed}/a.jpeg", f"val/{wnids[cropped]}/{val_name(1)}", f"imagenet-a/{wnids[3]}/a.jpg"):
        (data / target).parent.mkdir(parents=True)
        (data / target).write_bytes(wide.read_bytes())
    real_json(data, [squashed, cropped])

    options = ("--model", MODEL, "--data", data, "--batch-size", 2)
    done = invoke("robustness.py", checkpoint, *options, "--workers", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout) == [
        ["set", "images", "top-1 (%)"],
        ["ImageNet-V2", "1", "100.0"],
        ["ImageNet-ReaL", "1", "100.0"],
        ["ImageNet-A", "1", "100.0"],
        ["ImageNet-R", "not found", ""],
        ["ImageNet-Sketch", "not found", ""],
    ]
    assert f"not found: ImageNet-R: {data / 'imagenet-r'} does not exist" in done.stderr
    assert "warning: ImageNet-A has 1 of 7500 images" in done.stderr
    assert "warning: ImageNet-ReaL" not in done.stderr
    assert "ImageNet-V2, 1 images" in done.stderr and "1/1" in done.stderr and "tensors copied" in done.stderr
    written = json.loads(out.read_text())
    one = dict(images=1, top1=100.0)
    assert written["sets"] == dict(v2=one, real=one, a=one, r=None, sketch=None)
    assert (written["model"], written["checkpoint"], written["keep_ratio"]) == (MODEL, str(checkpoint), False)
    assert [path.name for path in out.parent.iterdir()] == ["table.json"]

    done = invoke("robustness.py", checkpoint, *options, "--workers", 0, "--sets", "val", "v2", "--keep-ratio")
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)[1:] == [["ImageNet val", "1", "100.0"], ["ImageNet-V2", "1", "0.0"]]


@pytest.mark.parametrize(("pool", "cls_token"), [("token", "middle"), ("token", "tail"), ("avg", "none")])
def test_the_tool_with_other_pooling_or_class_token(pool, cls_token, model, tmp_path, capsys):
    """The class folder is named after this model's prediction; weights for another model are refused (below)."""
    noise = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = tmp_path / V2 / "a.png"
    image.parent.mkdir()
    Image.fromarray(noise.numpy()).resize((240, 240), Image.Resampling.NEAREST).save(image)

    def build(pool: str, cls_token: str) -> torch.nn.Module:
        other = model_entrypoint(MODEL)(global_pool=pool, cls_token=None if cls_token == "none" else cls_token)
        names = other.state_dict()
        other.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in names})
        return other.eval()

    if pool == "token":  # the three predictions differ, so that an option without effect would be noticed
        cases = (("avg", "middle"), ("token", "middle"), ("token", "tail"))
        assert len({predicted(build(*case), image, False) for case in cases}) == 3
    other = build(pool, cls_token)
    write_checkpoint(tmp_path / "other.safetensors", other.state_dict(), {})
    folder = image.parent / str(predicted(other, image, False))
    folder.mkdir()
    image.rename(folder / "a.png")
    options = ("--model", MODEL, "--data", tmp_path, "--workers", 0, "--global-pool", pool, "--cls-token", cls_token)
    status = call_tool("robustness.py", tmp_path / "other.safetensors", *options)
    assert status == 0 and ["ImageNet-V2", "1", "100.0"] in rows(capsys.readouterr().out)


@pytest.fixture
def tool_refuses(tmp_path, capsys, monkeypatch):
    """Run the tool on an ImageNet-R of one image; it must print one line, exit with status 2 and write nothing."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "data" / "imagenet-r" / TENCH / "a.jpg")

    def check(checkpoint: Path, *arguments, says: str) -> None:
        before = set(tmp_path.rglob("*"))
        capsys.readouterr()
        options = ("--model", MODEL, "--data", "data", "--workers", 0, "--out", "new/table.json")
        status = call_tool("robustness.py", checkpoint, *options, *arguments)
        printed = capsys.readouterr()
        assert status == 2 and printed.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", printed.err), printed.err
        assert says in printed.err, printed.err
        assert set(tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sets", "r", "v2"], f"ImageNet-V2: data/{V2} does not exist; unpack the set there"),
        (["--data", "dta"], "--data dta is not a folder"),
        (["--data", "data/imagenet-r", "--sets", "sketch"], "sketch or data/imagenet-r/imagenet-sketch does not exist"),
        (["--val", "gone"], "--val gone is not a folder"),
        (["--val", "data", "--sets", "r"], "--val data is used by the sets real and val only"),
        (
            ["--global-pool", "token", "--cls-token", "none"],
            "--global-pool token needs a class token",
        ),
        (["--batch-size", "0"], "--batch-size 0: give at least 1"),
        (["--workers", "-1"], "--workers -1: give 0 or more"),
        (["--out", "data"], "--out data is a folder"),
        (["--sets", "r", "--model", "arm_small_patch16_224"], "--model arm_small_patch16_224: "),
        (["--sets", "r", "--cls-token", "none"], "--cls-token none: "),
        (["--model", "vmamba_tiny_224", "--cls-token", "middle"], "--model vmamba_tiny_224 --cls-token middle: "),
    ],
)
def test_wrong_arguments(arguments, says, checkpoint, tool_refuses):
    tool_refuses(checkpoint, *arguments, says=says)


def test_another_encoder_is_evaluated_as_its_authors_do(tmp_path):
    """Vim: the class token is read, and the shorter side is resized, which cuts off a border that squashing keeps."""
    vim, arm = (timm.create_model(name) for name in ("vim_tiny_patch16_224", MODEL))
    write_checkpoint(tmp_path / "vim.safetensors", vim.state_dict(), {})
    assert load_classifier(str(tmp_path / "vim.safetensors"), "vim_tiny_patch16_224")[0].global_pool == "token"
    image = Image.new("RGB", (400, 200))
    image.paste((255, 255, 255), (0, 0, 80, 200))
    shown = [eval_transform(model)(image)[0, 100, 0] for model in (vim, arm)]
    assert shown[0] < 0 < shown[1]


def test_checkpoints_without_a_classifier_of_imagenet(model, tmp_path, tool_refuses):
    state, path = model.state_dict(), tmp_path / "other.pth"

    def save(keep) -> Path:
        write_checkpoint(path, {name: tensor for name, tensor in state.items() if keep(name)}, {})
        return path

    save(lambda name: not name.startswith(("head", "norm")))
    tool_refuses(path, "--sets", "r", says=f"{path} has no classifier; give a checkpoint finetuned")
    save(lambda name: not name.startswith("head"))
    tool_refuses(path, "--sets", "r", says=f"{path} has no classifier; give a checkpoint finetuned")
    save(lambda name: not name.startswith("cls_"))
    tool_refuses(path, "--sets", "r", says=f"{path} has no class token; give --cls-token none")
    state |= {"head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}
    save(lambda name: True)
    tool_refuses(path, "--sets", "r", says=f"{path} has 10 classes, the sets need the 1000")
    tool_refuses(tmp_path / "gone.pth", "--sets", "r", says="gone.pth does not exist")


def test_none_of_the_sets_is_an_error(checkpoint, tmp_path, capsys):
    status = call_tool("robustness.py", checkpoint, "--model", MODEL, "--data", tmp_path)
    assert status == 2 and f"error: --data {tmp_path} contains none of the sets" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(workers, checkpoint, tmp_path, capsys):
    path = picture(tmp_path / "sketch" / TENCH / "a.JPEG")
    path.write_bytes(path.read_bytes()[:40])
    status = call_tool(
        "robustness.py", checkpoint, "--model", MODEL, "--data", tmp_path, "--sets", "sketch", "--workers", workers
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and error.startswith(f"error: image {path} cannot be read ("), error
    assert error.endswith("unpack the archive again")
