"""Reads the names of classes, and the colours or numbers that stand for them, from the files that other tools write.

Accepted, one class per line where it is text:

* a list of names;
* `NAME R G B`, `R G B NAME`, `NAME,R,G,B` or `NAME: R, G, B`, also CVAT's `NAME:R,G,B::` (`labelmap.txt`);
* `NUMBER NAME`, `NUMBER: NAME`, `NUMBER,NAME` (Roboflow's `_classes.csv`);
* JSON: `["NAME", ...]`, `{"NAME": [R, G, B]}`, `{"NAME": NUMBER}`, `{"NUMBER": "NAME"}`, or `{"classes": [...],
  "palette": [[R, G, B], ...]}`.

A first line of headings is skipped, and so are lines that begin with `#`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from arm_images.errors import DataError

NAMES = ("classes.txt", "labelmap.txt", "label_map.txt", "labels.txt", "class_dict.csv", "_classes.csv", "classes.csv",
         "label_colors.txt", "codes.txt", "class_names.txt", "objectinfo150.txt", "classes.json", "meta.json",
         "palette.json", "labelmap.json")  # fmt: skip
VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled", "unknown"}
HEADINGS = {"name", "names", "class", "classes", "label", "r", "g", "b", "red", "green", "blue", "id", "color",
            "pixel value", "value", "index", "color_rgb", "parts", "actions"}  # fmt: skip
FORMS = "lines with NAME, NAME R G B or NUMBER NAME, or JSON"
Colour = tuple[int, int, int]


@dataclass
class Legend:
    """What a file says of the classes.

    Attributes:
        names: in the order of the file.
        colours: one for each name, or None.
        numbers: the stored number for each name, or None.
    """

    file: Path
    names: list[str]
    colours: list[Colour] | None = None
    numbers: list[int] | None = None


def find_legend(root: Path) -> Legend | None:
    """The legend in a folder of label maps, by its usual names (`NAMES`); one that has another content is none."""
    by_name = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    for name in NAMES:
        if name in by_name:
            try:
                return read_legend(by_name[name])
            except DataError:
                continue
    return None


def read_legend(file: Path) -> Legend:
    """Read a legend in any of the forms above.

    Raises:
        DataError: naming the file, the line and the forms.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); give {FORMS}, in UTF-8") from None
    if file.suffix.lower() == ".json":
        rows = _json_rows(text, file)
    else:
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        columns = _columns(lines[0]) if lines else None
        if columns is not None:
            rows = [_table_row(line, *columns) for line in lines[1:]]
        else:
            rows = [_row(line) for line in lines if not _is_heading(line)]
    return _legend(rows, file)


def _legend(rows: list[tuple], file: Path) -> Legend:
    """Check that all rows have one form, and that nothing stands twice."""
    if not rows:
        raise DataError(f"{file} names no classes; give {FORMS}")
    names = [name for name, _, _ in rows]
    colours, numbers = [c for _, c, _ in rows], [n for _, _, n in rows]
    for values, what in ((names, "name"), (colours, "colour"), (numbers, "number")):
        given = [value for value in values if value is not None and value != ""]
        if 0 < len(given) < len(values):
            missing = next(names[i] or i + 1 for i, value in enumerate(values) if value in (None, ""))
            raise DataError(f"{file}: {missing} has no {what}, others have; give every class one")
        twice = [value for value in given if given.count(value) > 1]
        if twice:
            raise DataError(f"{file}: the {what} {twice[0]} stands for two classes; give each its own")
    if not names[0]:
        raise DataError(f"{file} has no names; give {FORMS}")
    colours = None if colours[0] is None else colours
    return Legend(file, names, colours, None if numbers[0] is None else numbers)


def _columns(heading: str) -> tuple[int, int] | None:
    """Of a table with other columns too, as ADE20K's `objectInfo150.txt`, those of the numbers and of the names."""
    words = [word.strip().lower() for word in heading.split("\t")]
    return (words.index("idx"), words.index("name")) if {"idx", "name"} <= set(words) else None


def _table_row(line: str, number: int, name: int) -> tuple[str, None, int | None]:
    cells = [cell.strip() for cell in line.split("\t")]
    whole = len(cells) > max(number, name) and cells[number].isdecimal()
    return (cells[name], None, int(cells[number])) if whole else (line, None, None)


def _is_heading(line: str) -> bool:
    words = [word.strip().lower() for word in re.split(r"[,;:\t]+", line) if word.strip()]
    return len(words) > 1 and set(words) <= HEADINGS


def _row(line: str) -> tuple[str, Colour | None, int | None]:
    """Name, colour and number of a line; what it does not give is None."""
    parts = [part.strip() for part in re.split(r"[,;:\t]+", line) if part.strip()]
    if len(parts) == 1:
        parts = line.split()
    elif any(re.fullmatch(r"\d+( +\d+)+", part) for part in parts):
        parts = [word for part in parts for word in part.split()]
    numbers = [(index, int(part)) for index, part in enumerate(parts) if part.isdecimal()]
    words = [part for part in parts if not part.isdecimal()]
    values = [number for _, number in numbers]
    name = " ".join(words)
    if len(values) == 3 and max(values) <= 255 and words:
        return name, tuple(values), None
    if len(values) == 4 and max(values[1:]) <= 255 and words and numbers[0][0] == 0:
        return name, tuple(values[1:]), values[0]  # NUMBER R G B NAME
    if len(values) == 1 and words and numbers[0][0] in (0, len(parts) - 1):
        return name, None, values[0]
    return line, None, None


def _json_rows(text: str, file: Path) -> list[tuple[str, Colour | None, int | None]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}); give {FORMS}") from None
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        names, palette = content["classes"], content.get("palette")
        if palette is not None and (not isinstance(palette, list) or len(palette) != len(names)):
            raise DataError(f"{file}: palette must be a list of {len(names)} colours, one for each class")
        rows = [(name, palette[index] if palette else None) for index, name in enumerate(names)]
    elif isinstance(content, list):
        rows = [(name, None) for name in content]
    elif isinstance(content, dict) and content:
        rows = [(value, int(key)) if key.isdecimal() else (key, value) for key, value in content.items()]
    else:
        rows = []
    return [_json_row(name, value, file) for name, value in rows]


def _json_row(name: object, value: object, file: Path) -> tuple[str, Colour | None, int | None]:
    is_colour = isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
    if not isinstance(name, str) or not (value is None or type(value) is int or is_colour):
        raise DataError(f"{file}: {name!r}: {value!r} does not describe a class; give {FORMS}")
    return name, tuple(value) if is_colour else None, value if type(value) is int else None
