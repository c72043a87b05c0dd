"""Renders the report as HTML and as Markdown."""

import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path

from .figures import ROW_COLOURS


@dataclass(frozen=True)
class Block:
    """A part of the report.

    Attributes:
        kind: "h1", "h2", "p", "list", "table" or "figure".
        text: of a heading or paragraph, caption of a figure; `code` and **strong** are marked up.
        rows: of a list (one cell each) or a table (the first is its header; "\\n" breaks a line).
        name, data: file name and bytes of a figure.
    """

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    name: str = ""
    data: bytes = b""


# --- writing ---

STYLE = """
body { max-width: 50rem; margin: 0 auto; padding: 1rem; background: #fff; color: #333; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; font-weight: 600; } h2 { font-size: 1.2rem; font-weight: 600; margin: 2.2rem 0 .6rem; }
h1 + p { background: #f1f4f6; border-radius: .4rem; padding: .8rem 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .4rem .7rem .4rem 0; border-bottom: 1px solid #dcdcd8; text-align: left; vertical-align: top; }
th { font-weight: 600; color: #555; } td { font-variant-numeric: tabular-nums; }
td + td { white-space: nowrap; } td code { white-space: normal; } td:has(code) { min-width: 16rem; }
.dot { display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .4rem; }
code { font-size: .85em; background: #f0f0ec; border-radius: .2rem; padding: .05em .25em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #555; margin-top: .4rem; } li { margin: .3rem 0; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } figure img { width: auto; max-width: 100%; max-height: 19cm; } }
"""


def page(blocks: list[Block]) -> str:
    """The whole HTML page, pictures and style inside; the first block is its title."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(map(_html, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{blocks[0].text}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    text = _inline(block.text)
    match block.kind:
        case "list":
            return "<ul>" + "".join(f"<li>{_inline(row[0])}</li>" for row in block.rows) + "</ul>"
        case "table":
            rows = [_html_row(row, "td" if i else "th") for i, row in enumerate(block.rows)]
            return '<div class="scroll"><table>' + "\n".join(rows) + "</table></div>"
        case "figure":
            kind = "png" if block.name.endswith(".png") else "jpeg"
            source = f"data:image/{kind};base64,{base64.b64encode(block.data).decode()}"
            alt = html.escape(Path(block.name).stem.replace("_", " "))
            return f'<figure><img src="{source}" alt="{alt}"><figcaption>{text}</figcaption></figure>'
        case tag:
            return f"<{tag}>{text}</{tag}>"


def _html_row(row: tuple[str, ...], tag: str) -> str:
    colour = ROW_COLOURS.get(row[0])
    dot = f'<span class="dot" style="background:{colour}"></span>' if colour else ""
    first, *cells = (_inline(cell).replace("\n", "<br>") for cell in row)
    return f"<tr><{tag}>{dot}{first}</{tag}>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def markdown(blocks: list[Block]) -> str:
    """The same in Markdown, pictures linked from report_files/."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block.kind:
        case "list":
            return "\n".join(f"- {row[0]}" for row in block.rows)
        case "table":
            cells = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in block.rows]
            cells.insert(1, ["---"] * len(cells[0]))
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case "figure":
            return f"![{Path(block.name).stem.replace('_', ' ')}](report_files/{block.name})\n\n{block.text}"
        case "h1" | "h2":
            return f"{'#' * int(block.kind[1])} {block.text}"
    return block.text
