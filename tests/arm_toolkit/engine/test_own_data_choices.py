"""What a written configuration sets: it fits images and machine, for every model, on a GPU and without one."""

from argparse import Namespace

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as MODULES
from mmengine.registry import DefaultScope

from arm_toolkit.datasets.formats.recognise import recognise
from arm_toolkit.engine.config import load_config
from arm_toolkit.engine.launch import train
from arm_toolkit.engine.own_data_choices import MODELS, Machine, choose
from arm_toolkit.engine.own_data_config import config_text
from tests.helpers.paths import ROOT
from tests.helpers.tools import own_globals
from tests.helpers.trees import write_class_folders, write_masks, write_yolo

MACHINES = [Machine(cores=2), Machine(cores=64), Machine("a GPU", 1, 12, 8), Machine("b", 8, 139)]
WRITERS = dict(
    masks=write_yolo,
    boxes=lambda shapes, out: write_yolo(shapes, out, boxes=True),
    labels=lambda shapes, out: write_masks(shapes, out, "labels"),
    classes=write_class_folders,
)


@pytest.fixture(scope="module")
def data(shapes, tmp_path_factory):
    """A function that gives a data set of a kind, ready to train on."""
    folder, made = tmp_path_factory.mktemp("own"), {}

    def get(kind: str):
        if kind not in made:
            made[kind] = recognise(WRITERS[kind](shapes, folder / kind))
            made[kind].write(folder / f"{kind}_data")
        return made[kind]

    return get


@pytest.mark.parametrize("kind", WRITERS)
def test_lengths_and_batches_fit(kind, data):
    for machine in MACHINES:
        for model in MODELS:
            choices = choose(data(kind), machine, model, scratch=True)
            assert choices.interval * choices.evaluations == choices.iterations >= 50
            assert 1 <= choices.batch <= data(kind).counts()["train"] and 0 < choices.decay < 1
            assert choices.rate == pytest.approx(2 * choose(data(kind), machine, model, scratch=False).rate)
    small, large = (choose(data(kind), Machine(cores=2), model, True).iterations for model in ("arm_tiny", "arm_base"))
    assert small > large  # in the same minutes


CPU, GPU = MACHINES[1:3]
CASES = [(kind, model, machine) for kind in ("masks", "labels")
         for model, machine in (("arm_small", CPU), ("arm_base", GPU), ("arm_large", GPU))]  # fmt: skip
CASES += [("boxes", "arm_large", GPU), ("classes", "arm_small", GPU)]


@pytest.mark.slow
@pytest.mark.parametrize("kind, model, machine", CASES, ids=lambda value: str(value).split()[0])
def test_every_model_is_written_so_that_its_parts_fit(kind, model, machine, data, tmp_path):
    """Passes the checks of training, and every width agrees: the whole model runs on the meta device."""
    choices = choose(data(kind), machine, model, scratch=True)
    file = tmp_path / "my.py"
    file.write_text(config_text(data(kind), choices, machine, None, ROOT, file))
    cfg = load_config(str(file))
    args = Namespace(check=True, launcher="none", work_dir=None, resume=None, auto_scale_lr=False, amp=False)
    with own_globals():
        train(cfg, args, "my")
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
        network = revert_sync_batchnorm(MODULES.build(cfg.model)).eval()
        images = torch.empty(1, 3, 64, 64)
        if kind == "classes":
            assert network(torch.empty(1, 3, choices.size, choices.size)).shape == (1, 3)
        elif kind == "labels":
            assert network.decode_head(network.extract_feat(images)).shape[1] == len(data(kind).classes)
            assert network.auxiliary_head(network.extract_feat(images)).shape[1] == len(data(kind).classes)
        else:
            levels = network.extract_feat(images)
            network.rpn_head.rpn_conv(levels[0])
            pooled = torch.empty(2, levels[0].shape[1], 7, 7)
            assert network.roi_head.bbox_head(pooled)[0].shape == (2, len(data(kind).classes) + 1)
            assert network.with_mask == (kind == "masks")
            assert kind == "boxes" or network.roi_head.mask_head(pooled).shape[1] == len(data(kind).classes)
