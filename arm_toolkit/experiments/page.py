"""Renders a report as one self-contained HTML page and as Markdown, from the two templates in this folder.

Texts may contain `code` and **strong**, which both formats show.
"""

import base64
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ..tables import markdown_table


@dataclass(frozen=True)
class Table:
    """A table of strings; line breaks in cells are kept.

    Attributes:
        dots: text of a row's first cell -> colour of the dot before it (HTML only).
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    dots: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """An image file (.png or .jpg) with a caption.

    Attributes:
        describes: what the image shows, for readers who do not see it; the name of the file if empty.
    """

    name: str
    data: bytes
    caption: str
    describes: str = ""

    @property
    def alt(self) -> str:
        """Text shown in place of the image."""
        return self.describes or Path(self.name).stem.replace("_", " ")

    @property
    def data_uri(self) -> str:
        """The image as a data URL, so that the page needs no other file."""
        kind = "png" if self.name.endswith(".png") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Figures side by side, where the page is wide enough (HTML only)."""

    figures: list[Figure]


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it; a string is a paragraph, a list of strings a bullet list."""

    title: str
    parts: list[str | list[str] | Table | Figure | Gallery]


def render(template: str, title: str, summary: list[str], sections: list[Section]) -> str:
    """Fill in `report.html.j2` or `report.md.j2`; the Markdown links its figures from report_files/."""
    return _ENVIRONMENT.get_template(template).render(title=title, summary=summary, sections=sections)


def duration(seconds: float) -> str:
    """Seconds in words, e.g. "12 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _inline_html(text: str) -> Markup:
    """The text as HTML: escaped, with code, strong and line breaks as tags."""
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text, quote=False))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text).replace("\n", "<br>"))  # noqa: S704 escaped


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["inline"] = _inline_html
_ENVIRONMENT.globals["markdown_table"] = markdown_table
