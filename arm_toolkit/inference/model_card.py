"""Writes the model card of a published folder: README.md with the hub's fields as a YAML header."""

from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from arm_backbone.checkpoint.accounting import shorten

from .run_metrics import Metrics

PIPELINES = {  # task -> the hub's name of it
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "classification": "image-classification",
    None: "image-feature-extraction",
}
SHOWN = {  # metric -> the hub's type, what people call it, and its unit
    "coco/bbox_mAP": ("mAP", "box AP", "fraction"),
    "coco/segm_mAP": ("mAP", "mask AP", "fraction"),
    "mIoU": ("mean_iou", "mIoU", "%"),
    "aAcc": ("accuracy", "pixel accuracy", "%"),
    "accuracy/top1": ("accuracy", "top-1 accuracy", "%"),
}
NOT_STATED = "not stated by the author"


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        name: of the model.
        model: what it is, in words ("MaskRCNN").
        task: as in `Published`.
        tags: names of the encoder on the hub.
        in_timm: whether timm reads the folder.
        classes: names by label.
        preprocessing: how an image is prepared, a line each.
        parameters: number of values in the weights.
        averaged: whether the weights are a moving average.
        sha256: of the weights.
        metrics: of the weights, and the log.
        datasets: that it was trained on.
        licence: the hub's identifier of a licence, or None.
        example: file name of the image with predictions, or None.
        notes: what became of the tensors of a checkpoint that was adapted, a line each.
    """

    name: str
    model: str
    task: str | None
    tags: list[str]
    in_timm: bool
    classes: list[str]
    preprocessing: list[str]
    parameters: int
    averaged: bool
    sha256: str
    metrics: Metrics
    datasets: list[str]
    licence: str | None
    example: str | None
    notes: list[str]


def write_card(card: Card) -> str:
    """The text of README.md."""
    return f"---\n{_header(card).to_yaml()}\n---\n\n{_text(card)}"


def _header(card: Card) -> ModelCardData:
    results = [
        EvalResult(
            task_type=PIPELINES[card.task],
            dataset_type=_hub_id(card.datasets[0]) if card.datasets else "unknown",
            dataset_name=card.datasets[0] if card.datasets else "unknown",
            metric_type=SHOWN[key][0],
            metric_name=SHOWN[key][1],
            metric_value=value,
        )
        for key, value in card.metrics.values.items()
        if key in SHOWN
    ]
    return ModelCardData(
        library_name="timm" if card.in_timm else "arm_toolkit",
        pipeline_tag=PIPELINES[card.task],
        license=card.licence or "unknown",
        tags=[*card.tags, *(["timm"] if card.in_timm else []), *([card.task] if card.task else ["backbone"])],
        datasets=[_hub_id(name) for name in card.datasets] or None,
        model_name=card.name if results else None,
        eval_results=results or None,
    )


def _hub_id(name: str) -> str:
    return name.strip().lower().replace(" ", "-")


def _text(card: Card) -> str:
    parts = [f"# {card.name}", _what(card)]
    if card.example:
        parts.append(f"![Predictions on an image]({card.example})")
    parts += ["## Use", _use(card), "## Classes", _classes(card.classes)]
    parts += ["## Preprocessing", "\n".join(f"* {line}" for line in card.preprocessing) or "See `config.json`."]
    parts += ["## Metrics", _metrics(card.metrics)]
    parts += ["## Data and licence", f"* Trained on: {', '.join(card.datasets) or NOT_STATED}."]
    parts[-1] += f"\n* Licence of the weights: {card.licence or NOT_STATED}."
    parts += ["## Files", _files(card)]
    return "\n\n".join(parts) + "\n"


def _what(card: Card) -> str:
    kind = {"detection": "A detector", "segmentation": "A segmentor", "classification": "A classifier"}
    weights = "the moving average of the weights of the training" if card.averaged else "the weights of the training"
    lines = [f"{kind.get(card.task, 'A backbone')} ({card.model}) with {card.parameters:,} parameters; {weights}."]
    if card.notes:
        lines += ["", "Of the checkpoint:", "", *(f"* {' '.join(note.split())}" for note in card.notes)]
    return "\n".join(lines)


def _use(card: Card) -> str:
    code = []
    if card.in_timm:
        code.append(
            "```python\nimport arm_backbone, timm  # arm_backbone registers the model with timm\n\n"
            'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:OWNER/NAME"\n```'
        )
    if card.task:
        code.append("```bash\npython tools/predict.py FOLDER IMAGES --out predictions  # or hf://OWNER/NAME\n```")
    return "\n\n".join(code) + (
        "\n\nLoading executes no code from this folder. The second command belongs to the toolkit ARM for dense "
        "prediction."
        if len(code) == 2
        else "\n\nLoading executes no code from this folder."
    )


def _classes(classes: list[str]) -> str:
    if not classes:
        return "Their names are not known."
    return f"{len(classes)}: {', '.join(classes) if len(classes) <= 150 else shorten(classes)}."


def _metrics(metrics: Metrics) -> str:
    if not metrics.values:
        return f"They are {metrics.source}."
    rows = [f"| {_label(key)} | {value:.4g} |" for key, value in sorted(metrics.values.items())]
    return "\n".join(["| metric | value |", "| --- | ---: |", *rows, "", f"Source: {metrics.source}."])


def _label(key: str) -> str:
    return f"{SHOWN[key][1]} (`{key}`, {SHOWN[key][2]})" if key in SHOWN else f"`{key}`"


def _files(card: Card) -> str:
    rows = [
        f"* `model.safetensors`: the weights, SHA-256 `{card.sha256}`",
        "* `config.json`: model, preprocessing and classes as data",
    ]
    if card.metrics.log:
        rows.append("* `log.jsonl`: what the training logged, a step per line")
    return "\n".join(rows)
