"""The log of a training, of epochs and of iterations, resumed and damaged."""

import json

from arm_toolkit.experiments.training_log import read_log
from tests.helpers.work_dirs import write_log


def test_a_log_of_epochs_resumed_in_the_middle(tmp_path):
    first = [dict(loss=3.0, lr=1.0, step=10, epoch=1, time=1.0), {"mIoU": 5.0, "step": 1}]
    first += [dict(loss=2.0, lr=1.0, step=20, epoch=2, time=1.0), {"mIoU": 6.0, "step": 2}]
    first += [{"position/a": 0.5, "step": 22}]
    write_log(tmp_path, "1", first)
    write_log(tmp_path, "2", [dict(loss=1.5, lr=0.5, step=20, epoch=2, time=2.0), {"mIoU": 9.0, "step": 2}])
    write_log(tmp_path, "3", [{"mIoU": 99.0, "step": 0}])  # of a test
    log = read_log(tmp_path)
    assert log.train == dict(loss=[(10, 3.0), (20, 1.5)], lr=[(10, 1.0), (20, 0.5)])
    assert log.val == dict(mIoU=[(10, 5.0), (20, 9.0)]) and log.resumed == [20]
    assert log.epoch == 2 and log.steps == 20 and log.seconds == 10 + 20 and not log.damaged


def test_a_resumed_run_that_evaluates_first(tmp_path):
    write_log(tmp_path, "1", [dict(loss=3.0, step=10, epoch=1)])
    write_log(tmp_path, "2", [{"mIoU": 5.0, "step": 1}, dict(loss=2.0, step=20, epoch=2), {"mIoU": 6.0, "step": 2}])
    assert read_log(tmp_path).val == dict(mIoU=[(10, 5.0), (20, 6.0)])


def test_a_log_of_iterations(tmp_path):
    lines = [dict(loss=3.0, step=50, iter=50), {"mIoU": 5.0, "step": 60}, dict(loss=2.0, step=100, iter=100)]
    write_log(tmp_path, "1", lines)
    log = read_log(tmp_path)
    assert log.val == dict(mIoU=[(60, 5.0)]) and log.epoch is None and log.seconds is None


def test_damaged_lines_are_left_out_and_named(tmp_path):
    line = json.dumps(dict(loss=3.0, step=5, text="a", flag=True))
    write_log(tmp_path, "1", [line, '{"loss": 2.0, "st'])  # killed while writing
    assert not read_log(tmp_path).damaged
    write_log(tmp_path, "2", ["\0\0", "[1]", '{"loss": 1.0}', line.replace("5", "9")])
    log = read_log(tmp_path)
    assert log.train == dict(loss=[(5, 3.0), (9, 3.0)])
    assert log.damaged == [tmp_path / "2/vis_data/scalars.json"]


def test_a_folder_without_a_log(tmp_path):
    log = read_log(tmp_path)
    assert not log.train and not log.val and log.steps == 0
