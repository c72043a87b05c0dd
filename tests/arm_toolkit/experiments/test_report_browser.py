"""The pages in a real browser: no error on the console, every image visible, nothing wider than the window."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from arm_toolkit.experiments.run_report import write_report
from tests.helpers.work_dirs import make_run, predict_labels, predict_objects

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OPTIONS += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
# In the copy: measures. Around it: a frame of the wanted width, because a window cannot be as narrow as a phone.
INNER = """<script>addEventListener("load", () => {
  const measure = i => [i.alt, i.naturalWidth, i.getBoundingClientRect().width, i.checkVisibility()];
  const scroll = document.documentElement.scrollWidth;
  parent.postMessage(JSON.stringify({sizes: [...document.images].map(measure), inner: innerWidth, scroll}), "*");
})</script>"""
OUTER = """<pre></pre><script>
addEventListener("message", event => { document.querySelector("pre").textContent = event.data; });
</script><iframe src="copy.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


def open_page(html: str, folder: Path, width: int) -> tuple[dict, list[str]]:
    """What a script in a copy of a page measured, and the lines of the console."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    (folder / "copy.html").write_text(html.replace("</body>", f"{INNER}</body>"))
    (folder / "outer.html").write_text(OUTER.replace("WIDTH", str(width)))
    command = [browser, *OPTIONS.split(), f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000"]
    address = (folder / "outer.html").as_uri()
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    (measured,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.S)
    return json.loads(unescape(measured)), re.findall(r"^.*CONSOLE.*$", done.stderr, re.M)


@pytest.fixture(scope="module")
def page(tmp_path_factory, shapes) -> str:
    """Two runs side by side, and runs of two other tasks; names and settings are long."""
    folder = tmp_path_factory.mktemp("runs")
    segs = [make_run(folder / f"segmentor_with_a_long_name_{i}", "seg", shapes, work_dir=str(i) * 200) for i in "ab"]
    for seg in segs:
        predict_labels(seg, shapes)
    det = make_run(folder / "det", "det", shapes)
    predict_objects(det, shapes)
    write_report([*segs, det, make_run(folder / "pretrain", "pretrain", shapes)], folder / "page.html")
    return (folder / "page.html").read_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_in_a_browser(page, tmp_path, width):
    measured, console = open_page(page, tmp_path, width)
    assert not console
    assert len(measured["sizes"]) == page.count("<img ") > 15
    for alt, natural, shown, visible in measured["sizes"]:
        assert natural > 300 and visible and 250 < shown <= width, alt
    assert measured["scroll"] <= measured["inner"] == width


def test_the_browser_would_tell(tmp_path):
    html = "<body><img src='data:image/png;base64,AAAA' alt='broken'><p style='width: 900px'>wide</p></body>"
    measured, console = open_page(html.replace("</body>", "<script>nothing()</script></body>"), tmp_path, 390)
    assert "nothing is not defined" in "".join(console)
    assert measured["sizes"][0][1] == 0 and measured["scroll"] > measured["inner"]
