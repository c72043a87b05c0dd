"""Checkpoints mutated in their bytes and in their contents, through reading, conversion, testing and resuming."""

import copy
import pickle
import random
from pathlib import Path

import torch

from arm_toolkit.errors import user_errors
from tests.fuzz.mutate import VALUES, mutate_bytes, places
from tests.fuzz.session import Fault, quiet
from tests.helpers.runs import pretrain_config, train
from tests.helpers.tools import invoke

# lines added to the configuration in a checkpoint; {call} leaves a trace if it is executed
TEXTS = (
    "x = {call}",
    "model = dict(type={call})",
    "custom_imports = dict(imports=['antigravity'])",
    "model = dict(type='os.system')",
    "def f(): pass",
    "x = 1",
    "(",
    "_base_ = 'other.py'",
    "del model",
)


class CheckpointCase:
    """One mutated training checkpoint, given to `--resume` or to `convert_checkpoint.py`.

    Args:
        shapes: folder of the generated data set.
        folder: for the files of a case.
    """

    def __init__(self, shapes: Path, folder: Path) -> None:
        self.folder, self.file, self.canary = folder, folder / "mutated.pth", folder / "canary"
        self.cfg = quiet(pretrain_config(shapes))
        self.cfg.custom_hooks = []
        self.cfg.train_cfg.max_epochs = 2
        self.cfg.default_hooks.checkpoint.update(interval=1, save_last=True)
        train(self.cfg, folder / "run")
        self.bytes = (folder / "run/epoch_1.pth").read_bytes()
        self.content = torch.load(folder / "run/epoch_1.pth", weights_only=True)

    def __call__(self, rng: random.Random) -> tuple[str, str]:
        what = self._mutate(rng)
        use = rng.choice(("resume", "convert"))
        try:
            if use == "resume":
                train(self.cfg, self.folder / "resumed", "--resume", str(self.file))
            else:
                done = invoke("convert_checkpoint.py", self.file, self.folder / "out.pth", "--to", "backbone")
                if done.returncode:
                    if done.returncode != 2 or "Traceback" in done.stderr:
                        raise Fault(f"{use}, {what}: status {done.returncode}, {done.stderr[-400:]}")
                    return f"{use}, {what}: {done.stderr.strip()}", "named error"
            result = self.folder / ("resumed/epoch_2.pth" if use == "resume" else "out.pth")
            state = torch.load(result, weights_only=True)["state_dict"]
            wrong = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
            if wrong:
                raise Fault(f"{use}, {what}: the result holds values that are not finite in {wrong[0]}")
            return f"{use}, {what}", "passes"
        except user_errors() as error:
            return f"{use}, {what}: {error}", "named error"
        finally:
            if self.canary.exists():
                self.canary.unlink()
                raise Fault(f"{use}, {what}: code from the file was executed")

    def _mutate(self, rng: random.Random) -> str:
        kind = rng.choice(("bytes", "contents", "contents", "tensor", "pickle", "text"))
        if kind == "bytes":
            data, what = mutate_bytes(self.bytes, rng)
            self.file.write_bytes(data)
            return what
        if kind == "pickle":

            class Call:
                def __reduce__(call):  # noqa: N805
                    return open, (str(self.canary), "w")

            content = {**self.content, rng.choice(("meta", "optimizer", "extra", "state_dict")): Call()}
            with self.file.open("wb") as file:
                (torch.save if rng.random() < 0.5 else pickle.dump)(content, file)
            return "a pickled call"
        content = copy.deepcopy(self.content)
        if kind == "text":
            line = rng.choice(TEXTS).format(call=f"open({str(self.canary)!r}, 'w')")
            content["meta"]["cfg"] = f"{content['meta']['cfg']}\n{line}\n"
            what = f"configuration text with {line}"
        elif kind == "tensor":
            state = content["state_dict"]
            name = rng.choice(sorted(state))
            what = rng.choice(("nan", "int64", "bool", "complex64", "meta", "shape", "removed", "renamed", "float16"))
            value = state.pop(name)
            if what == "nan":
                value = torch.full_like(value, float("nan"))
            elif what == "shape":
                value = value[..., None]
            else:
                value = value.to("meta") if what == "meta" else value.to(getattr(torch, what, value.dtype))
            if what != "removed":
                state[f"{name}_" if what == "renamed" else name] = value
            what = f"{name}: {what}"
        else:
            paths = [path for path in places(content) if path[0] != "state_dict"]
            depth = rng.choice(sorted({len(path) for path in paths}))
            path = rng.choice([path for path in paths if len(path) == depth])
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            value = rng.choice(VALUES)
            parent[path[-1]] = value
            what = f"{'.'.join(map(str, path))} = {value!r}"
        torch.save(content, self.file)
        return what
