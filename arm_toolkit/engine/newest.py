"""Finds the checkpoint that a run resumes from."""

import os
from pathlib import Path

from arm_backbone.checkpoint.files import CheckpointError, is_whole


def newest_checkpoint(work_dir: Path) -> str | None:
    """The newest whole checkpoint of a run, None if it has written none; prints a line if a newer one is damaged.

    The work dir's file `last_checkpoint` names the newest, unless the run died before it wrote that name. In a work dir
    that was copied or moved it names a file of the former place: the one of the same name here counts. Another place
    counts only if no checkpoint is here, as with `default_hooks.checkpoint.out_dir`.

    Raises:
        CheckpointError: if there are checkpoints, but none is whole.
    """
    found = [path for path in (*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")) if path.is_file()]
    note = work_dir / "last_checkpoint"
    text = note.read_text(errors="replace").strip() if note.is_file() else ""
    named = os.path.basename(text)
    found.sort(key=lambda path: (path.name == named, path.stat().st_mtime), reverse=True)
    if not found and os.path.isfile(text):
        found = [Path(text)]
    whole = next((path for path in found if is_whole(path)), None)
    if whole is None and found:
        raise CheckpointError(
            f"--resume: {', '.join(map(str, found))}: empty, cut off or damaged, and there is no other checkpoint; "
            "omit --resume to start from the beginning"
        )
    if whole is not None and whole != found[0] and os.environ.get("RANK", "0") == "0":
        print(f"warning: {found[0]} is empty, cut off or damaged; resuming from the older {whole}", flush=True)
    return None if whole is None else str(whole)
