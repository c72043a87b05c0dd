"""Checks images for pretraining."""

from collections import Counter
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.find import EXTENSIONS, survey
from arm_images.read import read_rgb

from .check_report import Report
from .look import look_at, note_turned


def check_images(
    path: str | Path,
    root: str | Path | None = None,
    decode: bool = True,
    progress: bool = False,
) -> Report:
    """Check images for pretraining, with the code that pretraining finds and reads them with.

    Args:
        path: any source of `arm_images.find.find_images`: a folder, a list, a .tar archive, a Hugging Face data set.
        root: folder that the lines of a list are relative to; default the folder of the list.
        decode: read every image; else only its header if it is of a common kind.
        progress: show a bar on stderr.

    Returns:
        Facts: images, unreadable, modes (count by PIL mode), short_side (min, max) and long_side (min, max) in pixels.
    """
    report = Report(str(path))
    try:
        found = survey(path, root)
    except DataError as error:
        report.error(str(error))
        return report
    files = found.files
    report.left_out(found.left_out)
    if not files:
        report.error(f"no images; looked for {', '.join(sorted(EXTENSIONS))}")
        return report
    twice = [name for name, count in Counter(map(str, files)).items() if count > 1]
    report.note(f"{len(twice)} paths are listed more than once", twice)

    unreadable, turned, modes, sizes, unseen = [], [], Counter(), [], 0
    for file, look in look_at(files, read_rgb, decode, progress):
        unseen += not look.decoded
        if look.fault:
            unreadable.append(f"{file} ({look.fault})")
        else:
            modes[look.mode] += 1
            sizes.append(look.size)
            turned += [file] * look.turned
    report.error(f"{len(unreadable)} of {len(files)} images cannot be decoded", unreadable)
    report.not_decoded(unseen, "without --no-decode they are")
    report.facts.update(images=len(files), unreadable=len(unreadable), modes=dict(modes))
    if sizes:
        short, long = np.sort(np.array(sizes), axis=1).T
        report.facts["short_side"] = int(short.min()), int(short.max())
        report.facts["long_side"] = int(long.min()), int(long.max())
        report.note(
            f"{len(files)} images; short side {short.min()} to {short.max()} pixels "
            f"(median {np.median(short):.0f}), long side {long.min()} to {long.max()}"
        )
    grey, cmyk = sum(modes[mode] for mode in ("1", "L", "LA")), modes["CMYK"]
    if grey or cmyk:
        report.note(f"{grey} greyscale, {cmyk} CMYK: loading converts them to RGB")
    note_turned(report, turned)
    return report
