"""mmseg's data sets of images and label maps, found with the code that the check of data uses.

The runner builds these where a configuration names BaseSegDataset or ADE20KDataset.
"""

from pathlib import Path

from mmengine.registry import DATASETS
from mmseg.datasets import ADE20KDataset, BaseSegDataset

from .image_pairs import find_pairs
from .transforms import LoadLabels, inner_steps


class CheckedPairs(BaseSegDataset):
    """Lists the same images as mmseg's data set, but hidden ones, and those of a loop of links, are left out.

    One line in the log says what is used, and what is left out and why. An image without a label map is a DataError
    before the first batch. Files that are not local are listed by mmseg.
    """

    def load_data_list(self) -> list[dict]:
        images, labels = (self.data_prefix.get(key) for key in ("img_path", "seg_map_path"))
        if labels is None or self.backend_args or "://" in f"{images}{labels}":
            return super().load_data_list()
        listed = Path(self.ann_file) if self.ann_file and not Path(self.ann_file).is_dir() else None
        pairs = find_pairs(images, labels, self.img_suffix, self.seg_map_suffix, listed)
        if any(isinstance(step, LoadLabels) for step in inner_steps(self.pipeline)):
            pairs.require_labels()
        for file in pairs.unused:
            pairs.found.leave_out("label maps without an image", file)
        pairs.found.log()
        shared = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        return [
            dict(img_path=image, seg_map_path=label, **shared, seg_fields=[])
            for image, label in zip(pairs.images, pairs.label_maps, strict=True)
        ]


@DATASETS.register_module()
class ARMSegDataset(CheckedPairs):
    """BaseSegDataset with the differences of `CheckedPairs`."""


@DATASETS.register_module()
class ARMADE20KDataset(CheckedPairs, ADE20KDataset):
    """ADE20KDataset with the differences of `CheckedPairs`."""
