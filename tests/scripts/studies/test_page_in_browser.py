"""The page in headless Chromium, as wide as a phone and a desk: pictures are seen, plays move, nothing is too wide."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch

from callbacks import schedules
from modules.nets.mlp import MLP
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.translation.search import Ends
from scripts.studies import momentum
from scripts.studies.lab import machine, recorded, records
from scripts.studies.lab import page as page_module
from scripts.studies.lab.statements import judge
from scripts.studies.lab.study import Play

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLACES = (0, 5, 50, 99, 150)
RUN = {"total": 100, "warmup": 10, "floor": 0.1, "d_model": 64, "factor": 2}
PROBE = """<script>
const failed = [];
addEventListener("error", event => failed.push(event.message || event.target.tagName), true);
addEventListener("unhandledrejection", event => failed.push(String(event.reason)));
console.error = (...said) => failed.push(said.join(" "));
const wait = () => new Promise(done => setTimeout(done, 40));
const look = box => box.querySelector("canvas").toDataURL() + box.querySelector("p").innerText;
async function use(box) {
  const idle = new Set(), moved = new Set();
  const attempt = async (name, act) => {
    const before = look(box);
    act();
    for (let i = 0; i < 20 && look(box) === before; i++) await wait();
    (look(box) === before ? idle : moved).add(name);
  };
  const canvas = box.querySelector("canvas");
  for (let round = 0; round < 2; round++) {
    for (const [i, input] of [...box.querySelectorAll("input")].entries()) {
      for (const value of [input.max, input.min, (Number(input.min) + Number(input.max)) / 2]) {
        await attempt(`slider ${i}`, () => { input.value = value; input.dispatchEvent(new Event("input")); });
      }
    }
    for (const [i, button] of [...box.querySelectorAll("button")].entries()) {
      await attempt(`button ${i}`, () => button.click());
    }
    const size = canvas.getBoundingClientRect();
    const options = { bubbles: true, clientX: size.left + size.width / 3, clientY: size.top + size.height / 2 };
    await attempt("canvas", () => canvas.dispatchEvent(new MouseEvent("click", options)));
    for (const key of ["ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp"]) {
      await attempt("keys", () => canvas.dispatchEvent(new KeyboardEvent("keydown", { key })));
    }
  }
  for (const name of moved) idle.delete(name);
  return [...idle];
}
addEventListener("load", async () => {
  const boxes = [...document.images].map(image => image.getBoundingClientRect());
  const visible = (image, i) => image.naturalWidth > 0 && boxes[i].width > 200 && boxes[i].height > 50;
  const own = image => !image.closest(".wide");
  const small = () => [...document.querySelectorAll("p, li, td, label, button")].filter(x => x.offsetParent)
    .map(x => parseFloat(getComputedStyle(x).fontSize));
  const idle = {}, needed = [], fonts = small();
  const grounds = [], titles = [], hidden = [];
  for (const press of ["language", "theme", "language", "theme"]) {
    document.getElementById(press).click();
    await wait();
    needed.push(document.documentElement.scrollWidth);
    grounds.push(getComputedStyle(document.body).backgroundColor);
    titles.push(`${document.documentElement.lang} ${document.title}`);
    const other = document.documentElement.lang === "en" ? ".zh" : ".en";
    hidden.push([...document.querySelectorAll(other)].every(x => x.offsetParent === null));
    fonts.push(...small());
  }
  for (const box of document.querySelectorAll(".play")) idle[box.dataset.script] = await use(box);
  const { formulas } = plays.schedules;
  const rates = {};
  for (const name in formulas) rates[name] = PLACES.map(step => formulas[name](step, RUN));
  needed.push(document.documentElement.scrollWidth);
  parent.postMessage({
    failed, width: innerWidth, needed: Math.max(...needed), pictures: [...document.images].map(visible),
    beyond: boxes.filter((box, i) => own(document.images[i]) && box.right > innerWidth).length, idle, rates, grounds,
    loaded: performance.getEntriesByType("resource").filter(x => !x.name.startsWith("data:")).map(x => x.name),
    smallest: Math.min(...fonts), sections: document.querySelectorAll("section").length, titles, hidden,
  }, "*");
});
</script>""".replace("PLACES", json.dumps(PLACES)).replace("RUN", json.dumps(RUN))
FRAME = """<!doctype html><iframe src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe>
<pre></pre><script>
onmessage = event => document.querySelector("pre").textContent = JSON.stringify(event.data);
</script>"""


def small_plays() -> dict[str, Play]:
    """Every script of play/ with data recorded from small nets."""
    torch.manual_seed(0)
    net, other = (TransformerSeq2Seq(40, 8, 2, 16, 1, dropout=0.0).eval() for _ in range(2))
    source, read = torch.tensor([[3, 4, 5, 2]]), torch.tensor([[1, 3, 4, 5, 6]])
    scores = {"masked": recorded.attention_scores(net, source, read)}
    scores["not masked"] = recorded.attention_scores(other, source, read)
    lattices = [recorded.lattice(net, source, Ends(0, 1, 2), width, str) for width in (1, 2, 4)]
    assert min(len(lattice["steps"]) for lattice in lattices) > 3
    parts = {str(n): recorded.sigmoids(MLP(1, 1, 1, [n], "sigmoid")) for n in (2, 4, 8)}
    x = torch.linspace(-1, 1, 51)
    found = {
        "attention": {"words": list("ABCDE"), "scores": scores},
        "beam": {"source": "a sentence", "lattices": lattices},
        "convolution": {
            "image": torch.randint(0, 256, (3, 8, 8)).tolist(), "seen": torch.randn(3, 8, 8).tolist(),
            "weight": torch.randn(2, 27).tolist(), "bias": [0.1, 0.2], "stride": 2, "padding": 1,
        },
        "schedules": {},
        "sigmoids": {"x": x.tolist(), "y": x.sin().tolist(), "parts": {"built": parts, "trained": parts}},
    }  # fmt: skip
    return {name: Play(name, lambda measurements, data=data: data) for name, data in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a page, with a script in it that tells what the browser made of it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install it to try the page in a browser")
    folder = tmp_path_factory.mktemp("page")
    found = [momentum.run(replace(momentum.Settings(), landscapes=4, steps=20), seed, folder) for seed in range(2)]
    plans = {"momentum": momentum.STUDY}
    plans |= {name: replace(momentum.STUDY, number=20, play=play) for name, play in small_plays().items()}
    for name, study in plans.items():
        verdicts = [judge(statement, found, (2,)) for statement in study.statements]
        records.save(machine.Outcome(name, study, True, found, verdicts, 1.0), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "load", plans.__getitem__)
        text = page_module.page(folder)
    (folder / "page.html").write_text(text.replace("<style>", PROBE + "<style>", 1), encoding="utf-8")
    return folder


def seen(folder, width, *flags):
    """What the page tells of itself, in a frame of that many pixels."""
    (folder / "frame.html").write_text(FRAME.format(width=width))
    line = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *flags,
        "--virtual-time-budget=100000", "--dump-dom", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    found = subprocess.run(line, capture_output=True, text=True, timeout=240)
    told = re.search("<pre>(.+)</pre>", found.stdout)
    assert told, found.stderr
    return json.loads(unescape(told[1]))


@pytest.mark.parametrize(("width", "flags"), [(360, ()), (1280, ("--force-prefers-reduced-motion",))])
def test_the_page_loads_fits_and_moves(folder, width, flags):
    found = seen(folder, width, *flags)
    scripts = {path.stem for path in (Path(page_module.__file__).parent / "play").glob("*.js")}
    assert found["failed"] == []
    assert found["loaded"] == []
    assert found["sections"] == len(scripts)
    assert found["pictures"] == [True] * len(scripts)
    assert abs(found["width"] - width) <= 20  # less a scroll bar
    assert found["needed"] <= found["width"]
    assert found["beyond"] == 0
    assert found["smallest"] >= 13
    assert found["idle"] == {name: [] for name in scripts}
    assert [title.split()[0] for title in found["titles"]] == ["zh-Hant", "zh-Hant", "en", "en"]
    assert len(set(found["titles"])) == 2
    assert all(found["hidden"])
    assert len(set(found["grounds"])) == 2


def test_schedules_in_the_page_are_those_of_the_project(folder):
    rates = seen(folder, 500)["rates"]
    takes = {
        "constant": ["warmup"], "linear": ["total", "warmup", "floor"], "cosine": ["total", "warmup", "floor"],
        "inverse_sqrt": ["warmup", "floor"], "noam": ["d_model", "warmup", "factor"],
    }  # fmt: skip
    assert rates.keys() == takes.keys()
    for name, names in takes.items():
        own = [getattr(schedules, name)(step, **{key: RUN[key] for key in names}) for step in PLACES]
        assert rates[name] == pytest.approx(own, rel=1e-9), name


def test_the_probe_sees_what_is_wrong(folder, tmp_path):
    """A page with a broken picture, a play that fails and one that does not move, and a heading wider than a phone."""
    text = re.sub(r"(base64,)\w+", r"\1AAAA", (folder / "page.html").read_text(encoding="utf-8"), count=1)
    text = text.replace(
        "plays.beam = (stage, data) => {", "plays.beam = (stage, data) => { setTimeout(() => nothing());"
    )
    text = text.replace("(on) => { masked = on; draw(); }", "() => {}")
    (tmp_path / "page.html").write_text(text.replace("<h1>", '<h1 style="width: 900px">'), encoding="utf-8")
    found = seen(tmp_path, 360)
    assert found["pictures"].count(False) == 1
    assert "IMG" in found["failed"]
    assert any("nothing" in said for said in found["failed"])
    assert len(found["idle"]["attention"]) == 1
    assert found["needed"] > 800
