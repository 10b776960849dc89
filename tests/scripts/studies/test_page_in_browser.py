"""The report in headless Chromium, as wide as a phone and as a desk: pictures are seen, nothing is too wide."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import pytest

from scripts.studies.lab import machine
from scripts.studies.lab.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STUDIES = {"sigmoids": {"counts": (2, 4, 8), "steps": 3}, "momentum": {"landscapes": 4, "steps": 20}}
PROBE = """<script>
const failed = [];
addEventListener("error", event => failed.push(event.message || event.target.tagName), true);
addEventListener("load", () => {
  const boxes = [...document.images].map(image => image.getBoundingClientRect());
  const visible = (image, i) => image.naturalWidth > 0 && boxes[i].width > 200 && boxes[i].height > 50;
  const small = [...document.querySelectorAll("p, li, td")].map(x => parseFloat(getComputedStyle(x).fontSize));
  parent.postMessage({
    failed, width: innerWidth, needed: document.documentElement.scrollWidth,
    pictures: [...document.images].map(visible), beyond: boxes.filter(box => box.right > innerWidth).length,
    loaded: performance.getEntriesByType("resource").filter(x => !x.name.startsWith("data:")).map(x => x.name),
    smallest: Math.min(...small), sections: document.querySelectorAll("section").length,
  }, "*");
});
</script>"""
FRAME = """<!doctype html><iframe src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe>
<pre></pre><script>
onmessage = event => document.querySelector("pre").textContent = JSON.stringify(event.data);
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a report, with a script in it that tells what the browser made of it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install it to try the report in a browser")
    folder = tmp_path_factory.mktemp("report")
    outcomes = []
    for name, tiny in STUDIES.items():
        study = machine.load(name)
        found = [study.run(replace(study.quick, **tiny), seed, folder) for seed in range(2)]
        outcomes.append(machine.Outcome(name, study, True, found, study.judge(found), 1.0))
    text = page(outcomes, {"other": "a reason"})
    assert "<script" not in text
    (folder / "page.html").write_text(text.replace("<style>", PROBE + "<style>", 1), encoding="utf-8")
    return folder


def seen(folder, width):
    """What the page tells of itself, in a frame of that many pixels."""
    (folder / "frame.html").write_text(FRAME.format(width=width))
    line = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=10000", "--dump-dom", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    found = subprocess.run(line, capture_output=True, text=True, timeout=120)
    told = re.search("<pre>(.+)</pre>", found.stdout)
    assert told, found.stderr
    return json.loads(unescape(told[1]))


@pytest.mark.parametrize("width", [360, 1280])
def test_the_report_loads_and_fits(folder, width):
    found = seen(folder, width)
    assert found["failed"] == []
    assert found["loaded"] == []
    assert found["sections"] == len(STUDIES)
    assert found["pictures"] == [True] * len(STUDIES)
    assert abs(found["width"] - width) <= 20  # less a scroll bar
    assert found["needed"] <= found["width"]
    assert found["beyond"] == 0
    assert found["smallest"] >= 13


def test_the_probe_sees_what_is_wrong(folder, tmp_path):
    """A page with a broken picture, and one wider than a phone."""
    text = (folder / "page.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(re.sub(r"(base64,)\w+", r"\1AAAA", text, count=1), encoding="utf-8")
    found = seen(tmp_path, 360)
    assert found["pictures"] == [False, True]
    assert found["failed"] == ["IMG"]
    (tmp_path / "page.html").write_text(text.replace("width: 100%", "width: 900px"), encoding="utf-8")
    found = seen(tmp_path, 360)
    assert found["needed"] > 360
    assert found["beyond"] == len(STUDIES)
