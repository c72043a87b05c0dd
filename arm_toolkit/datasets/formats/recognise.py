"""Recognises what kind of annotated images a folder holds."""

from pathlib import Path

from arm_images.errors import DataError

from .class_tree import ClassTree, find_class_tree
from .coco_tree import find_coco
from .instances import Instances
from .legend import Legend
from .mask_tree import LabelMaps, find_label_maps
from .yolo_tree import find_yolo

ACCEPTED = (
    "annotations/*.json with folders of images, or one COCO file; train/_annotations.coco.json (Roboflow); data.yaml "
    "with images/ and labels/ (YOLO); images/ with masks/ (label maps); train/CLASS/ and val/CLASS/, or CLASS/ "
    "(classification)"
)

OwnData = Instances | LabelMaps | ClassTree


def recognise(data: Path, legend: Legend | None = None, ignore_zero: bool = False, progress: bool = False) -> OwnData:
    """What a folder, a COCO file or a `data.yaml` holds.

    Args:
        legend: names of the classes of label maps; None looks for a file that gives them.
        ignore_zero: in label maps a stored 0 is ignored and k is the k-th class.
        progress: show a bar on stderr where all label maps are read.

    Raises:
        DataError: in one line, naming the file and the remedy, or what is accepted.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist; give a folder of annotated images")
    data = Path(data).resolve()
    found: OwnData | None = find_coco(data) or find_yolo(data)
    if found is None and data.is_dir():
        found = find_label_maps(data, legend, ignore_zero, progress) or find_class_tree(data)
    if found is None:
        raise DataError(f"{data} is not recognised; accepted are {ACCEPTED}; docs/data.md shows each")
    if not isinstance(found, LabelMaps) and (legend is not None or ignore_zero):
        given = f"--classes {legend.file}" if legend is not None else "--ignore-zero"
        raise DataError(f"{given} is for label maps, but {data} has {found.layout}, which name their classes")
    return found
