"""Writes the configuration that trains on somebody's own images: about twenty lines that inherit from ours."""

import json
from pathlib import Path

from ..datasets.formats.class_tree import ClassTree
from ..datasets.formats.instances import Instances
from ..datasets.formats.mask_tree import LabelMaps
from ..datasets.formats.recognise import OwnData
from .own_data_choices import Choices, Machine, arch_name, width_of

METRICS = dict(detection="coco/bbox_mAP", segmentation="mIoU", classification="accuracy/top1")
FOLDERS = dict(detection="det_configs", segmentation="seg_configs", classification="cls_configs")
# bases for a GPU, and with narrow heads
BASES = dict(
    detection=("mask_rcnn_arm.py", "mask_rcnn_arm_narrow.py"),
    segmentation=("upernet_arm.py", "upernet_arm_narrow.py"),
    classification=("arm.py", "arm.py"),
)
OWN_DATA = "own_data.py"
BASE_WIDTHS = (768, 192)  # of the encoders that these bases expect

PIPELINES = "train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline"


def config_text(
    data: OwnData, choices: Choices, machine: Machine, weights: str | None, repository: Path, out: Path
) -> str:
    """The text of a configuration.

    Args:
        weights: a checkpoint for the backbone; None trains from scratch.
        repository: holds the configurations that it inherits from.
        out: where it will be written.
    """
    counts = ", ".join(f"{count} images in {split}" for split, count in data.counts().items())
    folder = repository / FOLDERS[data.task] / "_base_"
    bases = [str(folder / name) for name in (BASES[data.task][choices.narrow], OWN_DATA)]
    init = f"init_cfg={f'dict(checkpoint={_text(weights)})' if weights else 'None'}"
    init_reason = "the weights that it starts from" if weights else "from scratch: no --weights"
    metric, interval = METRICS[data.task], choices.interval
    lines = [
        f"# {data.root.name}: {counts}, {len(data.classes)} classes ({data.layout}).",
        f"# Made by tools/new_config.py for a machine with {machine}. Train:",
        f"#   python tools/train.py {out}",
        f"_base_ = {_text(bases)}",
        f"data_root = {_text(f'{data.root}/')}",
        *_WRITERS[type(data)](data, choices, init, init_reason),
        *(["test_dataloader = val_dataloader"] if "test" not in data.parts else []),
        f"train_cfg = dict(max_iters={choices.iterations}, val_interval={interval})  # {choices.iterations_reason}",
        f"param_scheduler = dict(warmup={max(1, choices.iterations // 20)})  # iterations: a twentieth of them",
        f"optim_wrapper = dict(optimizer=dict(lr={choices.rate:g}))  # {choices.rate_reason}",
        f"auto_scale_lr = dict(base_batch_size={choices.batch * max(1, machine.gpus)})",
        "custom_hooks = [  # remove what you do not want",
        f'    dict(type="WeightEMAHook", decay={choices.decay:g}),  # evaluates and saves an average of the weights',
        f'    dict(type="EarlyStopHook", monitor="{metric}", patience={choices.patience}),  # evaluations in vain',
        "]",
        f"default_hooks = dict(checkpoint=dict(interval={interval}))  # also kept: the best by {metric}",
    ]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    """Texts, and lists of texts and numbers, as Python reads them, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _path(path: Path, root: Path) -> str:
    """A path for a data set: relative to its root if it lies there."""
    relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return _text("" if relative == "." else relative)


def _loader(split: str, settings: str, dataset: list[str], reason: str) -> list[str]:
    """The lines of a data loader."""
    comment = f"  # {reason}" if split == "train" and reason else ""
    return [f"{split}_dataloader = dict({settings}dataset=dict({comment}", *(f"    {line}" for line in dataset), "))"]


def _backbone(choices: Choices, init: str, init_reason: str) -> str:
    return f"    backbone=dict(arch={_text(arch_name(choices.model))}, {init}),  # {init_reason}"


def _detection(data: Instances, choices: Choices, init: str, init_reason: str) -> list[str]:
    number, width, size = len(data.classes), width_of(choices.model), choices.size
    lines = [f"classes = {_text(data.classes)}", "model = dict(", _backbone(choices, init, init_reason)]
    if width != BASE_WIDTHS[choices.narrow]:
        lines += [
            "    neck=[",
            f'        dict(type="ARMPyramid", in_channels={width}, norm_cfg=dict(type="GN")),',
            f'        dict(type="FPN", in_channels=[{width}] * 4, out_channels={64 if choices.narrow else 256},'
            " num_outs=5),",
            "    ],",
        ]
    if data.masks:
        heads = f"bbox_head=dict(num_classes={number}), mask_head=dict(num_classes={number})),"
    else:
        heads = f"bbox_head=dict(num_classes={number}), mask_roi_extractor=None, mask_head=None),  # boxes alone"
        lines.append("    data_preprocessor=dict(pad_mask=False),")
    sides = [round(size * factor) for factor in (0.75, 1.0, 1.25)]
    lines += [
        f"    roi_head=dict({heads}",
        ")",
        f"sides = {sides}  # longest side of an image: {choices.size_reason}",
        PIPELINES,
        f"train_pipeline[3].scales, test_pipeline[1].scale = [(side, side) for side in sides], ({size}, {size})",
        "tta_pipeline = _base_.tta_pipeline",
        'tta_pipeline[1].transforms[0] = [dict(type="Resize", scale=(s, s), keep_ratio=True) for s in sides]',
    ]
    if not data.masks:
        lines += [
            "train_pipeline[2].with_mask = test_pipeline[2].with_mask = False",
            'tta_model, val_evaluator = dict(type="DetTTAModel"), dict(metric=["bbox"])',
            "test_evaluator = val_evaluator",
        ]
    for split, part in data.parts.items():
        pipeline = "train_pipeline" if split == "train" else "test_pipeline"
        dataset = [
            f"data_root=data_root, metainfo=dict(classes=classes), pipeline={pipeline},",
            f"ann_file={_path(part.file, data.root)}, data_prefix=dict(img={_path(part.images, data.root)}),",
        ]
        settings = f"batch_size={choices.batch}, " if split == "train" else ""
        lines += _loader(split, settings, dataset, choices.batch_reason)
    return lines


def _segmentation(data: LabelMaps, choices: Choices, init: str, init_reason: str) -> list[str]:
    number, width, crop = len(data.classes), width_of(choices.model), choices.crop
    other_width = width != BASE_WIDTHS[choices.narrow]
    if max(choices.size) > 2 * crop and not choices.narrow:
        test = f"dict(crop_size=({crop}, {crop}), stride=({crop * 2 // 3}, {crop * 2 // 3})),  # in sliding windows"
    else:
        test = 'dict(_delete_=True, mode="whole"),'
    sizes = [tuple(round(side * factor) for side in choices.size) for factor in (0.75, 1.0, 1.25)]
    lines = [
        f"classes = {_text(data.classes)}",
        f"palette = {_text([list(colour) for colour in data.palette])}",
        "model = dict(",
        _backbone(choices, init, init_reason),
        f"    data_preprocessor=dict(size=({crop}, {crop})),",
        *([f"    neck=dict(in_channels={width}),"] if other_width else []),
        f"    decode_head=dict({f'in_channels=[{width}] * 4, ' * other_width}num_classes={number}),",
        f"    auxiliary_head=dict({f'in_channels={width}, ' * other_width}num_classes={number}),",
        f"    test_cfg={test}",
        ")",
        PIPELINES,
        f"train_pipeline[3].scale = test_pipeline[1].scale = {choices.size}  # {choices.size_reason}",
        f"train_pipeline[4].crop_size = ({crop}, {crop})  # {choices.crop_reason}",
        "tta_pipeline = _base_.tta_pipeline",
        'tta_pipeline[1].transforms[0] = [dict(type="Resize", scale=s, keep_ratio=True) for s in',
        f"                                 {sizes}]",
    ]
    for split, part in data.parts.items():
        pipeline = "train_pipeline" if split == "train" else "test_pipeline"
        listed = f" ann_file={_path(part.listed, data.root)}," if part.listed else ""
        dataset = [
            f"data_root=data_root, metainfo=dict(classes=classes, palette=palette), pipeline={pipeline},",
            f"reduce_zero_label={data.zero_ignored}, img_suffix={_text(part.img_suffix)},"
            f" seg_map_suffix={_text(part.seg_map_suffix)},{listed}",
            f"data_prefix=dict(img_path={_path(part.images, data.root)},"
            f" seg_map_path={_path(part.labels, data.root)}),",
        ]
        settings = f"batch_size={choices.batch}, " if split == "train" else ""
        lines += _loader(split, settings, dataset, choices.batch_reason)
    return lines


def _classification(data: ClassTree, choices: Choices, init: str, init_reason: str) -> list[str]:
    number, size = len(data.classes), choices.size
    lines = [
        "model = dict(",
        f"    arch={_text(arch_name(choices.model))}, img_size={size}, num_classes={number}, drop_path_rate=0.0,",
        f"    {init},  # {init_reason}",
        f"    data_preprocessor=dict(mixup=dict(mixup_alpha=0.1, cutmix_alpha=0.0, num_classes={number})),",
        ")",
    ]
    for split, part in data.parts.items():
        listed = f" ann_file={_path(part.listed, data.root)}," if part.listed else ""
        train = split == "train"
        batch = choices.batch if train else min(2 * choices.batch, data.counts()[split])
        dataset = [
            f"data_root=data_root, split={_text(part.split)}, classes_from={_text(data.parts['train'].split)},{listed}",
            f"transform=dict(input_size={size}{'' if train else ', crop_pct=1.0'}),"
            f"{f'  # {choices.size_reason}' if train else ''}",
        ]
        lines += _loader(split, f"batch_size={batch}, ", dataset, choices.batch_reason)
    return lines


_WRITERS = {Instances: _detection, LabelMaps: _segmentation, ClassTree: _classification}
