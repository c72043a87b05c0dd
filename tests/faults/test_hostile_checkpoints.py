"""Checkpoints that are not what they should be: one line with the file, what is wrong and the remedy."""

import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from arm_backbone import ARM
from arm_backbone.checkpoint.convert import arch_of, convert
from arm_backbone.checkpoint.files import CheckpointError, model_state, read_checkpoint
from arm_backbone.checkpoint.load import load_exact, load_trunk
from tests.helpers.small_models import ARCH, pretrainer

NAME = "blocks.1.mixer.in_proj.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ARM(ARCH, img_size=96).state_dict()


def write_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[0, :2] = torch.nan
    return tensor


TENSORS = {
    "int64": (lambda t: t.long(), "torch.int64"),
    "bool": (lambda t: t > 0, "torch.bool"),
    "complex64": (lambda t: t.to(torch.complex64), "complex"),
    "meta": (lambda t: t.to("meta"), "no data"),
    "sparse": (lambda t: t.to_sparse(), "sparse"),
    "quantized": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantized"),
    "NaN": (write_nan, "NaN or infinite values"),
    "infinite": (lambda t: t / 0, "NaN or infinite values"),
    "one number that is repeated": (lambda t: torch.ones(1, 1).expand(t.shape), "repeats a smaller memory"),
    "list": (lambda t: t.tolist(), "is a list, not a tensor"),
    "one dimension more": (lambda t: t[None], "dimensions"),
    "empty": (lambda t: t[:0], "shape"),
    "a number": (lambda t: t.sum(), "dimensions"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_no_weights_are_refused_by_name_and_type(kind, weights, tmp_path):
    """row_47: loading into a model, conversion, and reading the sizes."""
    change, says = TENSORS[kind]
    file = tmp_path / "weights.pth"
    torch.save(dict(state_dict=weights | {NAME: change(weights[NAME])}), file)

    def state() -> dict[str, torch.Tensor]:
        return model_state(read_checkpoint(file), where=file)

    model = ARM(ARCH, img_size=96)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for load in (load_trunk, load_exact):
        with pytest.raises(CheckpointError) as error:
            load(model, state(), file)
        assert str(file) in str(error.value) and NAME in str(error.value)
        assert says in str(error.value) or "another shape" in str(error.value)
        assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=NAME):
        convert(state(), "backbone")


def test_counters_stay_integers():
    """Batch norm counts its batches in an int64; only a file that disagrees with the model is refused."""
    model = torch.nn.BatchNorm2d(3)
    load_exact(model, model_state(model.state_dict()), "file")
    with pytest.raises(CheckpointError, match="num_batches_tracked torch.float32, not torch.int64"):
        load_exact(model, model.state_dict() | dict(num_batches_tracked=torch.tensor(1.0)), "file")


def test_half_precision_is_loaded(weights):
    model = ARM(ARCH, img_size=96)
    load_exact(model, {name: tensor.bfloat16() for name, tensor in weights.items()}, "file")
    assert torch.equal(model.state_dict()[NAME], weights[NAME].bfloat16().float())


FILES = {
    "a folder": (lambda file: file.mkdir(), "is a folder"),
    "a pipe": (os.mkfifo, "is a pipe"),
    "an empty file": (lambda file: file.touch(), "is empty"),
    "an empty dict": (lambda file: torch.save({}, file), "empty dict"),
    "a list": (lambda file: torch.save([torch.ones(1)], file), "holds a list"),
    "numbers as names": (lambda file: torch.save({0: torch.ones(1)}, file), "named 0"),
    "numbers as names below state_dict": (
        lambda file: torch.save(dict(state_dict={1.5: torch.ones(1)}), file),
        "named 1.5",
    ),
    "no tensors": (lambda file: torch.save(dict(state_dict=dict(a=1)), file), "no model weights"),
    "an empty state_dict": (lambda file: torch.save(dict(state_dict={}), file), "no model weights"),
    "a link to nothing": (lambda file: file.symlink_to("gone.pth"), "does not exist"),
    "text": (lambda file: file.write_text("weights"), "PyTorch checkpoint"),
    "zeros": (lambda file: file.write_bytes(bytes(1000)), "PyTorch checkpoint"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_no_checkpoints(what, tmp_path):
    """row_48"""
    write, says = FILES[what]
    file = tmp_path / "weights.pth"
    write(file)
    with pytest.raises(CheckpointError) as error:
        model_state(read_checkpoint(file), where=file)
    assert str(file) in str(error.value) and says in str(error.value) and "\n" not in str(error.value)
    assert ";" in str(error.value) or "expected" in str(error.value)  # the remedy


def test_an_address_is_refused_with_the_remedy():
    """row_48"""
    with pytest.raises(CheckpointError, match="https://host/a.pth is an address; download the file"):
        read_checkpoint("https://host/a.pth")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(weights, tmp_path):
    """row_48"""
    file = tmp_path / "weights.pth"
    torch.save(weights, file)
    file.chmod(0)
    with pytest.raises(CheckpointError, match=r"weights\.pth cannot be read"):
        read_checkpoint(file)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


SAFETENSORS = {
    "a length beyond the file": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": header("{{{{"),
    "an unknown type": header('{"a":{"dtype":"X99","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
    "offsets beyond the file": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}') + bytes(4),
    "a shape that does not fit": header('{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,4]}}') + bytes(4),
    "a header that is cut off": header('{"a":{"dtype"')[:12],
    "three bytes": b"abc",
}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_safetensors_with_a_wrong_header(what, tmp_path):
    """row_48"""
    file = tmp_path / "weights.safetensors"
    file.write_bytes(SAFETENSORS[what])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not a complete safetensors file \("):
        read_checkpoint(file)


def test_safetensors_of_another_type(weights, tmp_path):
    """row_47"""
    save_file({name: tensor.contiguous().long() for name, tensor in weights.items()}, tmp_path / "a.safetensors")
    state = model_state(read_checkpoint(tmp_path / "a.safetensors"))
    with pytest.raises(CheckpointError, match="torch.int64"):
        load_trunk(ARM(ARCH, img_size=96), state, "a.safetensors")


def test_names_with_gaps_or_huge_numbers_end_at_once(weights):
    """A number in a name must not decide how many blocks are built."""
    renamed = {name.replace("blocks.3.", "blocks.1000000000."): tensor for name, tensor in weights.items()}
    with pytest.raises(CheckpointError, match=r"not complete: no blocks\.3"):
        arch_of(renamed)
    decoder = {
        k.replace("decoder.blocks.1.", "decoder.blocks.987654321."): v for k, v in pretrainer().state_dict().items()
    }
    with pytest.raises(CheckpointError, match=r"not complete: no decoder\.blocks\.1"):
        convert(decoder, "pretrain")
