"""Reading the documentation: links, headings, code blocks and commands of Markdown files."""

import re
import shlex
from pathlib import Path

from .paths import ROOT

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
    ROOT.glob("docs/*.md")
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"^(?: {4}.*\n)+", re.M)
_SPAN = re.compile(r"`[^`\n]+(?:\n[^`\n]+)?`")


def name(path: Path) -> str:
    """A document's path in the repository, for the names of tests."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return [code for found, code in _BLOCK.findall(path.read_text()) if found == language]


def prose(path: Path) -> str:
    """A document without code."""
    return _SPAN.sub("", _INDENTED.sub("\n", _BLOCK.sub("", path.read_text())))


def spans(path: Path) -> list[str]:
    """The code spans, without their backticks."""
    text = _INDENTED.sub("\n", _BLOCK.sub("", path.read_text()))
    return [" ".join(span.strip("`").split()) for span in _SPAN.findall(text)]


def links(path: Path) -> list[str]:
    """The targets of links and images."""
    text = _BLOCK.sub("", path.read_text())
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(path: Path) -> list[list[str]]:
    """The words of every command: lines of bash blocks and indented blocks, and code spans that start a tool."""
    text = "\n".join(blocks(path, "bash") + _INDENTED.findall(_BLOCK.sub("", path.read_text())))
    lines = text.replace("\\\n", " ").splitlines()
    lines += [span for span in spans(path) if re.match(r"(python|bash) |tools/\S+ ", span)]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part.replace("'", "’"), comments=True))]
