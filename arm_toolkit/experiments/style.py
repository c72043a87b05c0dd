"""Colours, sizes and file formats that all figures of the reports share.

The colours are Okabe and Ito's, which remain distinct with the common forms of colour blindness.
"""

import io
import warnings

from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of what is compared
LINES = ("-", "--", ":", "-.")  # once the colours are used up
CLASS_COLOURS = ("#009E73", "#CC79A7", "#F0E442", "#56B4E9", "#E69F00")  # of objects; SERIES starts with the two others
BACKGROUND = "#5A5A5A"
WRONG = "#D55E00"
INK, FAINT, GRID = "#333333", "#888888", "#e6e6e6"
WIDTH = 6.0  # inches; narrow, so that the text is large enough on a phone
DPI = 190


def series_colour(index: int) -> str:
    """Colour of the run with this index."""
    return SERIES[index % len(SERIES)]


def series_line(index: int) -> str:
    """Matplotlib's line style of the run with this index: it changes when the colours repeat."""
    return LINES[index // len(SERIES) % len(LINES)]


def class_colour(index: int) -> str:
    """Colour of the class with this index, not counting the background; the colours repeat after five."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def hues(count: int) -> list[str]:
    """Colours for many classes: hues that lie far apart for neighbours, in three brightnesses."""
    golden = 0.61803398875  # of a circle: later hues fall into the largest gaps
    shades = ((0.55, 0.92), (0.9, 0.72), (0.4, 0.62))  # saturation and brightness
    return [to_hex(hsv_to_rgb((index * golden % 1, *shades[index % 3]))) for index in range(count)]


def plain(text: str, longest: int = 40) -> str:
    """A name as a label of a figure: shortened, and without matplotlib's formulas between dollar signs."""
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.replace("$", r"\$")


def encode(fig: Figure, kind: str, dpi: float = DPI) -> bytes:
    """The figure as a file, "png" or "jpeg", on white."""
    buffer = io.BytesIO()
    options = {"quality": 82, "optimize": True} if kind == "jpeg" else {"optimize": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a letter that the font lacks is a box
        fig.savefig(buffer, format=kind, dpi=dpi, pil_kwargs=options, facecolor="white")
    return buffer.getvalue()
