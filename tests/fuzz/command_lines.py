"""Command lines with mutated options: each ends with status 0, or with status 2 and one line."""

import random
import shutil
from pathlib import Path

from tests.fuzz.mutate import VALUES
from tests.fuzz.session import Fault, quiet
from tests.helpers.runs import det_config, pretrain_config, seg_config
from tests.helpers.tools import invoke

NUMBERS = ("0", "-1", "1e400", "nan", "007", "1,2", "(1,2)")
CODE = ("None", "True", "[]", "{}", "dict(type='x')", "__import__('os')")
TEXTS = ("", "x", "'a b'", "../..", "/", "%s", "ä", "a" * 300, "=", "--help", *NUMBERS, *CODE)
FLAGS = ("--resume", "--amp", "--auto-scale-lr", "--launcher")


class CommandLineCase:
    """One command with one to three options changed.

    Args:
        shapes: folder of the generated data set.
        folder: for the files of a case.
    """

    def __init__(self, shapes: Path, folder: Path) -> None:
        self.folder, self.configs, self.keys = folder, {}, {}
        for name, make in dict(pretrain=pretrain_config, det=det_config, seg=seg_config).items():
            cfg = make(shapes)
            quiet(cfg)
            if name == "seg":
                cfg.train_cfg.max_iters, cfg.param_scheduler[1].end = 3, 3
            else:
                cfg.train_cfg.max_epochs = 1
                cfg.train_dataloader.batch_size = 8
            cfg.custom_hooks = []
            cfg.dump(folder / f"{name}.py")
            self.configs[name] = folder / f"{name}.py"
            self.keys[name] = list(_keys(cfg.to_dict()))

    def __call__(self, rng: random.Random) -> tuple[str, str]:
        name = rng.choice(sorted(self.configs))
        tool = "pretrain.py" if name == "pretrain" else "train.py"
        arguments = [str(self.configs[name]), "--work-dir", str(self.folder / "work")]
        options = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = rng.choice(TEXTS) if rng.random() < 0.6 else str(rng.choice(VALUES))
            options.append(f"{rng.choice(self.keys[name])}={value}")
        arguments += ["--cfg-options", *options]
        if rng.random() < 0.2:
            arguments.insert(rng.randrange(len(arguments) + 1), rng.choice((*FLAGS, *TEXTS)))
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        done = invoke(tool, *arguments, cwd=self.folder)
        what = f"{tool} {name} {' '.join(arguments[3:])}"
        if done.returncode == 0:
            return what, "passes"
        if done.returncode != 2 or "Traceback" in done.stderr:
            raise Fault(f"{what}: status {done.returncode}: {done.stderr[-600:]}")
        return f"{what}: {done.stderr.strip().splitlines()[-1]}", "named error"


def _keys(node, path: str = ""):
    """Dotted keys of a configuration's values."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        where = f"{path}.{key}" if path else str(key)
        yield where
        if isinstance(value, dict | list):
            yield from _keys(value, where)
