"""The documentation is well-formed: links, paths and names exist, the README is short, words are used consistently."""

import pkgutil
import re

import pytest

from tests.helpers.documents import DOCUMENTS, anchors, blocks, links, name, prose, spans
from tests.helpers.paths import ROOT

README = ROOT / "README.md"
# one word for one thing, and phrases that read as translated
AVOIDED = (
    r"segmenters?|pictures?|photographs?|photos?|back-ends?|backends?|alike|asked for|made again|told by|lies? over"
    r"|without a word|a line each|one path a line"
)
PATHS = re.compile(
    r"(?:arm_\w+|pretrain|tools|tests|docs|(?:det|seg|cls)_configs)/[\w./]*|(?:README|CONTRIBUTING|CHANGELOG)\.md"
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path):
    for link in links(path):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name != "CHANGELOG.md"], ids=name)
def test_named_paths_exist(path):
    missing = [span for span in spans(path) if PATHS.fullmatch(span) and not (ROOT / span).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_named_modules_and_functions_exist(path):
    if path.name == "CHANGELOG.md":  # only the last column of its tables has current names
        text = "".join(line.split("|")[-2] for line in path.read_text().splitlines() if line.startswith("| "))
        found = re.findall(r"`([^`]+)`", text)
    else:
        found = spans(path)
    for span in found:
        if match := re.match(r"(arm_\w+(?:\.\w+)*)(?:\.\{([\w,]+)\})?", span):
            parent, several = match.groups()
            for dotted in [f"{parent}.{part}" for part in several.split(",")] if several else [parent]:
                if "." in dotted:
                    pkgutil.resolve_name(dotted)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_words(path):
    found = re.findall(rf"\b(?:{AVOIDED})\b", prose(path), re.I)
    assert not found


def test_words_of_configurations():
    files = [path for folder in ("det", "seg", "cls") for path in (ROOT / f"{folder}_configs").rglob("*.py")]
    files += (ROOT / "pretrain/configs").rglob("*.py")
    comments = {path: re.findall(r"#.*", path.read_text()) for path in files if "photographs" not in path.parts}
    avoided = re.compile(rf"\b(?:{AVOIDED})\b", re.I)
    assert not [(path, line) for path, lines in comments.items() for line in lines if avoided.search(line)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_prose_is_not_wider_than_a_screen(path):
    lines = path.read_text().splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def test_readme_is_short_and_opens_with_an_image():
    lines = README.read_text().splitlines()
    assert len(lines) < 200
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("# ") and lines[2].startswith("![")


def test_code_blocks_have_a_language_that_is_tested():
    for path in DOCUMENTS:
        fences = re.findall(r"^```(\w*)$", path.read_text(), re.M)[::2]
        assert set(fences) <= {"bash", "python"}, path
        assert len(fences) == len(blocks(path, "bash")) + len(blocks(path, "python")), path


def test_citation_names_both_papers():
    text = (ROOT / "CITATION.cff").read_text()
    assert "arXiv:2406.07537" in text and "arXiv:2603.03806" in text
