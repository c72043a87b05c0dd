"""mmdet's CocoDataset, with annotations that are checked and labels that follow the class names."""

from collections import Counter
from collections.abc import Iterable

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from arm_images.absent import absent_files
from arm_images.errors import DataError

from .annotations import describe_absent, read_coco
from .transforms import LoadImage, inner_steps


class NamedCOCO(COCO):
    """COCO's index of what `read_coco` returns; it gives category ids in the order of the requested names.

    mmdet's COCO gives them in the file's order, so that label i is not always the i-th class.
    """

    def __init__(self, content: dict, file: str) -> None:
        super().__init__()
        self.dataset, self.file = content, file
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(self, cat_names: Iterable[str] = (), sup_names=(), cat_ids=()) -> list:
        if not cat_names or sup_names or cat_ids:
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        ids = {category["name"]: category["id"] for category in self.dataset["categories"]}
        absent = [name for name in cat_names if name not in ids]
        if absent:
            raise DataError(f"{self.file} has no category {', '.join(absent)}; correct metainfo.classes or the file")
        return [ids[name] for name in cat_names]


@DATASETS.register_module()
class ARMCocoDataset(CocoDataset):
    """mmdet's CocoDataset with three differences; the runner builds it where a configuration names CocoDataset.

    * The file is read by `read_coco`: a fault is a DataError before the first batch. One line in the log says what is
      used, and what is left out and why.
    * Label i is the i-th name in `metainfo.classes`, wherever the category stands in the file.
    * An image that is not there is a DataError before the first batch, unless `LoadImageFromFile` skips such images.
    """

    def COCOAPI(self, file: str) -> NamedCOCO:
        """The index that mmdet reads annotations from."""
        masks = any(getattr(step, "with_mask", False) for step in inner_steps(self.pipeline))
        content, report = read_coco(file, masks, self.test_mode)
        for repair in report.facts["repairs"]:
            print_log(f"{self.ann_file}: {repair}", logger="current")
        self._per_class = Counter(report.facts["per_class"])
        return NamedCOCO(content, file)

    def filter_data(self) -> list[dict]:
        """Like mmdet's; also logs how many images and objects are used."""
        used, everything = super().filter_data(), self.data_list
        smallest = (self.filter_cfg or {}).get("min_size", 0)
        small = sum(min(entry["width"], entry["height"]) < smallest for entry in everything)
        left = len(everything) - len(used)
        small = min(small, left)
        objects, total = sum(len(entry["instances"]) for entry in used), self._per_class.total()
        other = total - sum(self._per_class[name] for name in self.metainfo["classes"])
        message = f"{self.ann_file}: {len(used)} of {len(everything)} images used"
        if left:
            message += f" ({small} smaller than {smallest} pixels, {left - small} without objects of the classes)"
        message += f", {objects} of {total} annotations"
        if objects < total:
            message += (
                f" ({other} of other categories, {total - other - objects} marked 'ignore', less than 1 pixel wide or "
                "high, outside their image, or in images that are not used)"
            )
        print_log(message, logger="current")
        self._require_images([entry["img_path"] for entry in used])
        return used

    def _require_images(self, paths: list[str]) -> None:
        loading = [step for step in inner_steps(self.pipeline) if isinstance(step, LoadImage)]
        local = "://" not in self.data_prefix["img"]
        if not local or self._indices is not None or not any(step.stops_at_missing for step in loading):
            return
        if absent := absent_files(paths):
            raise DataError(f"{self.ann_file}: {describe_absent(absent, len(paths))}; check data_root and data_prefix")
