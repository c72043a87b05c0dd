"""What the pixels of label maps hold, and what they mean: numbers, palettes, two values, or colours."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from arm_images.errors import DataError
from arm_images.header import read_header
from arm_images.pillow import Image, ImageOps
from arm_images.read import read_labels, reason

from ..check_report import by, some
from ..label_maps import IGNORED
from .legend import VOID, Colour, Legend

THREADS = 4
MOST = 254  # classes that 8 bits hold beside `IGNORED`
EDGES = 256  # more colours than this come from smoothed edges, not from classes


@dataclass
class Seen:
    """What was found in all label maps of a data set.

    Attributes:
        pixels: number of pixels by stored value: an int, or a colour (R, G, B).
        first: the first file with each value.
        palette: colours of a palette image's indices; empty for others.
        sizes: (width, height) of the images, in their order.
    """

    pixels: Counter = field(default_factory=Counter)
    first: dict = field(default_factory=dict)
    palette: list[Colour] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def coloured(self) -> bool:
        return isinstance(next(iter(self.pixels)), tuple)

    def add(self, other: "Seen") -> None:
        """Add what was found elsewhere."""
        self.pixels.update(other.pixels)
        self.first = other.first | self.first
        self.palette = self.palette or other.palette
        self.sizes = self.sizes + other.sizes


def look_at_maps(pairs: Iterable[tuple[Path, Path]], progress: bool = False) -> Seen:
    """Read all label maps and the headers of their images.

    Raises:
        DataError: naming a file that cannot be read, that is a JPEG, or that has another size than its image, or two
            files of which one holds colours and one numbers.
    """
    pairs, seen = list(pairs), Seen()
    kinds: dict[bool, Path] = {}
    with ThreadPool(THREADS) as pool:
        found = pool.imap(_look, pairs, chunksize=8)
        if progress:
            from tqdm import tqdm

            found = tqdm(found, total=len(pairs), desc="label maps", leave=False)
        for (_, file), (size, palette, values) in zip(pairs, found, strict=True):
            seen.sizes.append(size)
            seen.palette = seen.palette or palette
            for value, count in values.items():
                seen.pixels[value] += count
                seen.first.setdefault(value, file)
            kinds.setdefault(isinstance(next(iter(values)), tuple), file)
    if len(kinds) == 2:
        raise DataError(
            f"{kinds[True]} holds colours and {kinds[False]} numbers; save all label maps in one of the two forms"
        )
    return seen


def _look(pair: tuple[Path, Path]) -> tuple[tuple[int, int], list[Colour], dict]:
    """The size of an image, the palette of its label map, and pixels by value."""
    image, file = pair
    try:
        size = read_header(image).size
    except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
        raise DataError(f"image {image} cannot be read ({reason(error)}); repair or remove it") from None
    labels, palette = read_map(file)
    if labels.shape[1::-1] != size:
        raise DataError(
            f"label map {file} has {by(labels.shape[1::-1])} pixels, its image {image} {by(size)}; save it in the "
            "size of the image, without smoothing (nearest neighbour)"
        )
    if labels.ndim == 2:
        counts = np.bincount(labels.ravel(), minlength=256)
        return size, palette, {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    packed, counts = np.unique(pack(labels), return_counts=True)
    return size, palette, {_unpack(int(value)): int(count) for value, count in zip(packed, counts, strict=True)}


def read_map(file: Path) -> tuple[np.ndarray, list[Colour]]:
    """A label map, upright: (H, W) numbers or (H, W, 3) colours, uint8, and the palette of a palette image.

    Raises:
        DataError: naming the file, the fault and the remedy.
    """
    try:
        with Image.open(file) as image:
            mode, jpeg = image.mode, image.format in ("JPEG", "MPO")
            palette = image.getpalette() if mode == "P" else None
            if mode in ("RGB", "RGBA") and not jpeg:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), []
        labels = read_labels(file)
    except DataError as error:
        raise DataError(f"label map {file}: {error}") from None
    except Exception as error:  # noqa: BLE001 whatever a decoder makes of a damaged file
        raise DataError(f"label map {file} cannot be read ({reason(error)}); repair it") from None
    colours = [tuple(palette[i : i + 3]) for i in range(0, len(palette) - 2, 3)] if palette else []
    if mode == "1":
        labels = (labels > 0).astype(np.uint8)
    return labels, colours


def pack(colours: np.ndarray) -> np.ndarray:
    """One number for each colour; (..., 3) uint8 -> (...) int32."""
    parts = colours.astype(np.int32)
    return (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]


def _unpack(value: int) -> Colour:
    return value >> 16, value >> 8 & 255, value & 255


@dataclass
class Meaning:
    """Which class each stored value is.

    Attributes:
        classes: names in the order of their labels.
        classes_of: class by stored value; `IGNORED` for values that are ignored.
        zero_ignored: the files can be used as they are, and a stored k is class k - 1 (mmseg's `reduce_zero_label`).
        as_stored: the files can be used as they are.
        colours: one for each class, or None.
        note: how this was decided.
    """

    classes: list[str]
    classes_of: dict
    zero_ignored: bool = False
    as_stored: bool = False
    colours: list[Colour] | None = None
    note: str = ""


def interpret(seen: Seen, legend: Legend | None, root: Path, ignore_zero: bool = False) -> Meaning:
    """Decide which class each value is.

    Args:
        ignore_zero: a stored 0 is ignored and k is the k-th class.

    Raises:
        DataError: if the legend does not name a value, or colours have no legend.
    """
    if ignore_zero:
        legend = _from_one(seen, legend, root)
    if seen.coloured and all(len(set(colour)) == 1 for colour in seen.pixels):
        grey = Seen(Counter({c[0]: n for c, n in seen.pixels.items()}), {c[0]: f for c, f in seen.first.items()})
        meaning = _of_numbers(grey, legend, root)
        meaning.classes_of = {(v, v, v): label for v, label in meaning.classes_of.items()}
        meaning.as_stored = meaning.zero_ignored = False
        meaning.note = f"colours that are all grey, read as numbers; {meaning.note}"
        return meaning
    meaning = _of_colours(seen, legend, root) if seen.coloured else _of_numbers(seen, legend, root)
    if not any(label != IGNORED for value, label in meaning.classes_of.items() if value in seen.pixels):
        raise DataError(f"{root}: every pixel of the label maps is ignored; store the classes as 0, 1, 2, ...")
    return meaning


def _from_one(seen: Seen, legend: Legend | None, root: Path) -> Legend:
    """A legend that gives the numbers 1, 2, ... to the classes."""
    if seen.coloured:
        raise DataError(f"{root}: --ignore-zero is for numbers, but the label maps hold colours; give --classes FILE")
    largest = max((value for value in seen.pixels if value != IGNORED), default=0)
    names = legend.names if legend is not None else [f"class {number}" for number in range(1, largest + 1)]
    return Legend(legend.file if legend is not None else root, names, numbers=list(range(1, len(names) + 1)))


def _of_colours(seen: Seen, legend: Legend | None, root: Path) -> Meaning:
    if legend is None or legend.colours is None:
        shown = ", ".join(" ".join(map(str, colour)) for colour, _ in seen.pixels.most_common(8))
        why = "no list of classes says" if legend is None else f"{legend.file} names classes without colours, so not"
        many = "; so many come from smoothed edges or JPEG: save the masks without" if len(seen.pixels) > EDGES else ""
        raise DataError(
            f"the masks of {root} hold {len(seen.pixels)} colours, and {why} what they mean{many}; give --classes FILE "
            f"with one line NAME R G B for each: {shown}"
        )
    unknown = [colour for colour in seen.pixels if colour not in legend.colours and colour != (IGNORED,) * 3]
    if unknown:
        worst = max(unknown, key=seen.pixels.__getitem__)
        many = ", as smoothed edges or JPEG make them: save the masks without" if len(unknown) > EDGES else ""
        raise DataError(
            f"label map {seen.first[worst]} holds the colour {' '.join(map(str, worst))} ({seen.pixels[worst]} pixels "
            f"in all), which {legend.file} does not name ({len(unknown)} such colours{many}); add it there, or correct "
            "the mask; a class called ignore is ignored"
        )
    keep = [index for index, name in enumerate(legend.names) if name.lower() not in VOID]
    classes_of = {colour: IGNORED for colour in legend.colours}
    classes_of |= {legend.colours[index]: label for label, index in enumerate(keep)}
    classes_of.setdefault((IGNORED,) * 3, IGNORED)
    ignored = [name for name in legend.names if name.lower() in VOID]
    note = f"classes by colour, from {legend.file.name}" + (f"; {', '.join(ignored)} is ignored" if ignored else "")
    return Meaning([legend.names[i] for i in keep], classes_of, colours=[legend.colours[i] for i in keep], note=note)


def _of_numbers(seen: Seen, legend: Legend | None, root: Path) -> Meaning:
    values = sorted(value for value in seen.pixels if value != IGNORED)
    if legend is not None and legend.colours and seen.palette:
        return _by_palette(seen, legend, values)
    if set(seen.pixels) <= {0, IGNORED} and IGNORED in seen.pixels and (legend is None or len(legend.names) <= 2):
        names = legend.names if legend is not None else ["foreground"]
        names = names if len(names) == 2 else ["background", *names]
        return Meaning(names, {0: 0, IGNORED: 1}, note=f"two values: 0 is {names[0]}, 255 is {names[1]}")
    if legend is not None and legend.numbers:
        return _by_numbers(seen, legend, values)
    if legend is not None:
        return _by_order(seen, legend, values)
    if len(values) > 64 and len(values) > 0.5 * (values[-1] + 1) and len(seen.sizes) < len(values):
        raise DataError(
            f"label map {seen.first[values[-1]]} and others hold {len(values)} different values, more than classes "
            "usually are: are these photographs, or masks with smoothed edges? Save class numbers as 8-bit PNG"
        )
    whole = values[-1] < 2 * len(values)
    numbers = range(values[-1] + 1) if whole else values
    note = f"no list of class names: the classes are called after the values{some(values, 12)}; give --classes FILE"
    return Meaning(
        [f"class {number}" for number in numbers],
        {number: label for label, number in enumerate(numbers)} | {IGNORED: IGNORED},
        as_stored=whole,
        note=note,
    )


def _by_palette(seen: Seen, legend: Legend, values: list[int]) -> Meaning:
    """By the colours that a palette gives to the numbers."""
    keep = [index for index, name in enumerate(legend.names) if name.lower() not in VOID]
    labels = {legend.colours[index]: label for label, index in enumerate(keep)}
    unknown = [v for v in values if v >= len(seen.palette) or seen.palette[v] not in legend.colours]
    if unknown:
        colour = seen.palette[unknown[0]] if unknown[0] < len(seen.palette) else "no colour"
        raise DataError(
            f"label map {seen.first[unknown[0]]} holds the value {unknown[0]}, whose palette has {colour}; "
            f"{legend.file} does not name that; add it there"
        )
    classes_of = {v: labels.get(seen.palette[v], IGNORED) for v in values} | {IGNORED: IGNORED}
    return _usable(Meaning([legend.names[i] for i in keep], classes_of, colours=[legend.colours[i] for i in keep],
                           note=f"classes by the palette's colours, from {legend.file.name}"))  # fmt: skip


def _by_numbers(seen: Seen, legend: Legend, values: list[int]) -> Meaning:
    keep = [index for index, name in enumerate(legend.names) if name.lower() not in VOID]
    classes_of = {number: IGNORED for number in legend.numbers}
    classes_of |= {legend.numbers[index]: label for label, index in enumerate(keep)}
    if 0 not in classes_of and 0 in values and sorted(legend.numbers) == list(range(1, len(legend.numbers) + 1)):
        classes_of[0] = IGNORED
    unknown = [value for value in values if value not in classes_of]
    if unknown:
        raise DataError(
            f"label map {seen.first[unknown[0]]} holds the label {unknown[0]}, which {legend.file} does not name; "
            "add it there or correct the map"
        )
    classes_of.setdefault(IGNORED, IGNORED)
    return _usable(Meaning([legend.names[i] for i in keep], classes_of, note=f"classes from {legend.file.name}"))


def _by_order(seen: Seen, legend: Legend, values: list[int]) -> Meaning:
    """By a list of n names: 0 to n - 1 are the classes, or 1 to n if a label n occurs."""
    names, largest = legend.names, values[-1] if values else 0
    if largest > len(names):
        raise DataError(
            f"label map {seen.first[largest]} holds the label {largest}, but {legend.file} names {len(names)} classes; "
            "name the others too, or correct the map"
        )
    if largest == len(names):
        note = f"{len(names)} names and labels up to {largest}: a stored k is the k-th name, and 0 is ignored"
        return Meaning(names, {0: IGNORED} | {k: k - 1 for k in range(1, largest + 1)} | {IGNORED: IGNORED},
                       zero_ignored=True, as_stored=True, colours=legend.colours, note=note)  # fmt: skip
    keep = [index for index, name in enumerate(names) if name.lower() not in VOID]
    classes_of = dict.fromkeys(range(len(names)), IGNORED) | {index: label for label, index in enumerate(keep)}
    ignored = f", {', '.join(name for name in names if name.lower() in VOID)} is ignored" * (len(keep) < len(names))
    return _usable(
        Meaning(
            [names[i] for i in keep],
            classes_of | {IGNORED: IGNORED},
            colours=[legend.colours[i] for i in keep] if legend.colours else None,
            note=f"{len(names)} names and labels from {values[0] if values else 0} to {largest}: a stored 0 is "
            f"{names[0]}{ignored}; if 0 is to be ignored, give --ignore-zero",
        )
    )


def _usable(meaning: Meaning) -> Meaning:
    """Note whether files can be used as they are."""
    labels = meaning.classes_of
    meaning.as_stored = all(label == value for value, label in labels.items())
    if not meaning.as_stored and all(
        label == (IGNORED if value in (0, IGNORED) else value - 1) for value, label in labels.items()
    ):
        meaning.as_stored = meaning.zero_ignored = True
    return meaning
