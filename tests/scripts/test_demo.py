"""leeml demo: what each tab answers, without a server; then the page itself, and in headless Chromium."""

import functools
import io
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import soundfile
import torch
from browser import chromium
from conftest import OLD, answer
from PIL import Image

from datamodules.errors import DataError
from datamodules.speech.audio import RATE, log_mel
from modules.hw5_parallel import CTCTranslator, MaskedTranslator
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.translation.search import greedy
from scripts import demo
from scripts.demos import hw1_covid, hw2_phoneme, hw3_food, hw4_speaker, hw5_translation, parts

SENTENCE = "Two shafans not nano a mothen lilin thagur."


@pytest.fixture(scope="module")
def opened(old_data):
    """The old run of each homework, with its held-out samples."""
    runs = [parts.open_run(path, ["--data.root", str(old_data)], False) for path in sorted(OLD.glob("hw*"))]
    assert all(run.examples for run in runs), [run.note for run in runs]
    return {run.model.homework: run for run in runs}


@pytest.fixture(scope="module")
def masked(opened):
    """A translator that says all words at once, not trained, of the same tokens."""
    net = functools.partial(TransformerSeq2Seq, d_model=8, heads=2, d_ff=8, layers=1, causal=False)
    return build(MaskedTranslator(net=net, iterations=4), opened["hw5_translation"].model.facts)


def build(model, facts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.expect(facts)
        model.configure_model()
    return model.eval()


def wav(folder, samples, name="sound.wav"):
    path = folder / name
    soundfile.write(path, samples, RATE)
    return str(path)


def tone(seconds):
    return 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.2)


# answers


def test_hw1_estimates_what_the_run_predicts(opened):
    run = opened["hw1_covid"]
    for example in run.examples:
        row = run.data.train.values[int(example["row"][0])]
        found = hw1_covid.answer(run.model, run.data.features, row.tolist())
        with torch.no_grad():
            assert found.mean == pytest.approx(float(run.model.ensemble({"x": example["x"]})[0]), rel=1e-4)
        assert found.lowest <= found.mean <= found.highest


def test_hw1_knows_states_and_days_by_the_names_of_the_columns(opened):
    run = opened["hw1_covid"]
    table = run.data.train
    assert hw1_covid.layout_of(table.columns) == (table.states, table.survey, table.days)


def test_hw2_hears_what_the_run_predicts(opened):
    run = opened["hw2_phoneme"]
    for example in run.examples:
        frames, true = hw2_phoneme._utterance(example)
        found = hw2_phoneme.answer(run.model, frames, true)
        with torch.no_grad():
            assert found.labels.equal(run.model.labels(example))
        heard, rows, spectrogram = found.figure.axes
        assert (heard.get_ylabel(), rows.get_ylabel()) == ("heard", "true")
        assert heard.get_position().y0 > rows.get_position().y0 > spectrogram.get_position().y0


def test_hw3_names_the_likeliest_classes(opened):
    run = opened["hw3_food"]
    image = run.examples[0]["x"][0]
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    read = hw3_food.read_photo(file.getvalue(), run.data.image_size)
    assert read.equal(image)
    found = hw3_food.answer(run.model, read, read)
    with torch.no_grad():
        shares = run.model(image.unsqueeze(0)).softmax(1)[0]
    best = shares.argsort(descending=True)[:5].tolist()
    assert [name for name, _ in found.classes] == [run.model.facts["classes"][i] for i in best]
    assert [share for _, share in found.classes] == pytest.approx(shares[best].tolist(), rel=1e-4)
    assert found.figure is not None


def test_hw4_finds_the_voice_that_it_knows(opened):
    run = opened["hw4_speaker"]
    frames = run.examples[0]["x"][0]
    with torch.no_grad():
        own = run.model.judge({"x": frames.float().unsqueeze(0)})
    voices = hw4_speaker.speakers_voices(run)
    assert voices.norm(dim=1).numpy() == pytest.approx(np.ones(len(voices)), rel=1e-5)
    voices[3] = torch.nn.functional.normalize(own.embeddings[0], dim=0)
    found = hw4_speaker.answer(run.model, frames, voices)
    assert found[0].name == run.model.facts["classes"][int(own.answers)]
    assert sum(heard.probability for heard in found) == pytest.approx(1, rel=1e-5)
    closest = max(found, key=lambda heard: heard.similarity)
    assert (closest.name, closest.similarity) == (run.model.facts["classes"][3], pytest.approx(1, rel=1e-5))


def test_hw5_translates_as_the_run_does(opened, masked):
    for model in (opened["hw5_translation"].model, masked):
        found = hw5_translation.answer(model, SENTENCE)
        source = hw5_translation.source_of(model, SENTENCE)
        with torch.no_grad():
            said = model.translate(source.unsqueeze(0))[0]
        assert found.texts[0][0] == hw5_translation.RESTORE["zh"](said)
        scores = [score for _, score in found.texts]
        assert scores == sorted(scores, reverse=True)
        (weights,) = found.attention.values()
        assert weights.shape[1:] == (len(found.target), len(found.source))
        assert weights.sum(2).numpy() == pytest.approx(np.ones(weights.shape[:2]), rel=1e-4)


def test_hw5_says_token_after_token_what_greedy_finds(opened):
    model = opened["hw5_translation"].model
    steps = list(hw5_translation.steps(model, SENTENCE))
    source = hw5_translation.source_of(model, SENTENCE)
    tokens = greedy([model.net], source.unsqueeze(0), None, model.ends)[0][0].tokens
    assert [len(step.pieces) for step in steps] == list(range(1, len(tokens) + 1))
    assert steps[-1].pieces == hw5_translation.pieces_of(model, tokens)
    assert all(step.new == [False] * (len(step.pieces) - 1) + [True] for step in steps)


def test_hw5_says_all_at_once_and_then_again_what_was_least_sure(masked):
    steps = list(hw5_translation.steps(masked, SENTENCE))
    count = len(steps[0].pieces)
    assert steps[0].new == [True] * count
    assert [sum(step.new) for step in steps] == [count, *(count * (4 - t) // 4 for t in range(1, len(steps)))]


def test_hw5_runs_stand_side_by_side(opened, masked):
    *going, last = hw5_translation._raced([opened["hw5_translation"].model, masked], SENTENCE)
    assert [done for *_, done in last] == [True, True]
    assert [number for number, *_ in last] == [len(going), len(list(hw5_translation.steps(masked, SENTENCE)))]


def test_hw5_without_an_order_of_tokens(opened):
    net = functools.partial(TransformerSeq2Seq, d_model=8, heads=2, d_ff=8, layers=1, causal=False)
    model = build(CTCTranslator(net=net), opened["hw5_translation"].model.facts)
    found = hw5_translation.answer(model, SENTENCE)
    assert found.texts[0][1] is None
    assert not found.attention
    assert len(list(hw5_translation.steps(model, SENTENCE))) == 1


# bad input


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "Write a sentence"), ("", "Write a sentence"), (" \n\t ", "Write a sentence"),
        ("word " * 2_000_000, "10,000,000 characters"), ("(all of it)", "Nothing is left"),
        ("xq" * 400, "tokens; the run was trained for at most 255"),
    ],
)  # fmt: skip
def test_bad_sentences_get_a_sentence(opened, text, says):
    with pytest.raises(DataError, match=says):
        hw5_translation.answer(opened["hw5_translation"].model, text)


@pytest.mark.parametrize("text", ["\x00\x01", "🙂🙂", "你好", "\ud800", "a" * 200])
def test_odd_sentences_are_translated(opened, text):
    assert hw5_translation.answer(opened["hw5_translation"].model, text).texts


def test_bad_photos_get_a_sentence():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    cases = {None: "Choose a photo", b"": "Choose a photo", b"GIF89a": "no image", file.getvalue()[:200]: "broken"}
    cases |= {huge.getvalue(): "too many pixels", b"%!PS-Adobe-3.0 EPSF-3.0\n": "no image"}
    for data, says in cases.items():
        with pytest.raises(DataError, match=says):
            hw3_food.read_photo(data, 32)


def test_bad_recordings_get_a_sentence(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF, or not")
    cases = {
        None: "Upload a recording", wav(tmp_path, tone(0.1), "short.wav"): "lasts 0.10 s",
        wav(tmp_path, np.zeros(RATE), "silent.wav"): "silent", wav(tmp_path, tone(61), "long.wav"): "lasts 61 s",
        wav(tmp_path, np.zeros(0), "empty.wav"): "not read", str(tmp_path / "broken.wav"): "not read",
    }  # fmt: skip
    for path, says in cases.items():
        with pytest.raises(DataError, match=says) as error:
            parts.read_recording(path)
        assert str(tmp_path) not in str(error.value)


def test_a_recording_is_heard_by_both(opened, tmp_path):
    samples = parts.read_recording(wav(tmp_path, tone(1)))
    assert len(hw4_speaker.answer(opened["hw4_speaker"].model, torch.from_numpy(log_mel(samples)))) > 1
    frames = hw2_phoneme.normalise(hw2_phoneme.mfcc(samples))
    assert len(hw2_phoneme.answer(opened["hw2_phoneme"].model, torch.from_numpy(frames)).labels) == 100


def test_a_slider_without_a_number_gets_a_sentence(opened):
    run = opened["hw1_covid"]
    row = run.data.train.values[0].tolist()
    for value in (None, float("nan")):
        with pytest.raises(DataError, match=rf"{run.model.facts['columns'][50]}: expected a number"):
            hw1_covid.answer(run.model, run.data.features, [*row[:50], value, *row[51:]])


def test_what_nobody_thought_of_is_a_sentence_on_the_page_and_a_traceback_in_the_terminal(capsys):
    assert parts.guarded(lambda: 1 / 0, 2)() == [parts.SORRY, None, None]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert parts.guarded(lambda x: [x], 1)(3) == ["", 3]


# the command


def test_without_gradio_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = answer("demo", "--run_dir", OLD / "hw1_covid")
    assert said.code == 1
    assert said.err.strip() == f"leeml: error: leeml demo needs gradio, which is not installed: {demo.INSTALL}"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "--run_dir"), (["--run_dir", "nowhere"], 1, "nowhere"),
        (["--run_dir", str(OLD / "hw1_covid"), "--share"], 2, "--share: no such flag"),
    ],
)  # fmt: skip
def test_bad_command_lines(args, code, says):
    said = answer("demo", *args)
    assert said.code == code
    assert says in said.err


def test_a_run_without_its_data_has_no_examples(tmp_path):
    run = parts.open_run(OLD / "hw1_covid", ["--data.root", str(tmp_path)], False)
    assert run.examples == []
    assert "was not found" in run.note
    page = demo.page_of([run])
    assert any("was not found" in str(block.value) for block in page.blocks.values() if hasattr(block, "value"))


def test_a_port_that_is_taken(opened):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DataError, match=f"--port {port}: .*choose another one"):
            demo.serve(demo.page_of([opened["hw3_food"]]), "127.0.0.1", port, block=False)


@pytest.fixture(scope="module")
def served(opened, masked):
    """Address of a page with all homeworks, and its gr.Blocks."""
    runs = [*opened.values(), parts.Trained("all at once", masked, opened["hw5_translation"].data, [], "")]
    page = demo.page_of(runs)
    address = demo.serve(page, "127.0.0.1", None, block=False)
    yield address, page
    page.close()


def test_the_page_is_this_machines_alone(served):
    address, page = served
    assert urlsplit(address).hostname == "127.0.0.1"
    assert page.share_url is None
    assert not page.analytics_enabled
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((other, urlsplit(address).port), 2)


def test_the_page_takes_no_path(served, tmp_path):
    address, page = served
    secret = Path(wav(tmp_path, tone(1)))
    for path in (secret, Path(demo.__file__), Path(__file__), OLD / "hw1_covid" / "config.yaml"):
        for way in ("file=", "file/"):
            assert requests.get(f"{address}gradio_api/{way}{path}", timeout=30).status_code in (403, 404)
    heard = next(n for n, fn in page.fns.items() if [type(i).__name__ for i in fn.inputs] == ["Audio"])
    data = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [data], "fn_index": heard, "session_hash": "x"}
    requests.post(f"{address}gradio_api/queue/join", json=body, timeout=30)
    events = requests.get(f"{address}gradio_api/queue/data?session_hash=x", timeout=60).text
    assert "process_completed" in events
    assert '"success":true' not in events


# in a browser

TABS = "return [...document.querySelectorAll('[role=tab]')].map(tab => tab.innerText)"
OPEN = """const tab = [...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText == arguments[0]);
if (tab) tab.click(); return tab && tab.getAttribute('aria-selected') == 'true'"""
PANEL = "const panel = [...document.querySelectorAll('[role=tabpanel]')].find(part => part.offsetParent);"
CLICK = (
    PANEL
    + """const found = [...panel.querySelectorAll(arguments[0])].filter(part => part.offsetParent);
if (found.length) found[0].click(); return found.length"""
)
HOLDS = PANEL + "return panel.innerText.includes(arguments[0])"
SEEN = (
    PANEL
    + """return [...panel.querySelectorAll(arguments[0])].filter(
  part => part.offsetParent && (part.tagName != 'IMG' || part.naturalWidth > 0)).length"""
)
TEXT = PANEL + "const found = panel.querySelector(arguments[0]); return found && found.innerText"
EXAMPLE = "button.gallery-item, button.thumbnail-item"
ANSWERS = {
    "HW1": ".big", "HW2": ".scrolled img.wide", "HW3": ".scrolled img.whole", "HW4": "table.leeml td",
    "HW5": "table.attention td",
}  # fmt: skip


MARK = (
    PANEL
    + """document.querySelectorAll('#upload').forEach(part => part.removeAttribute('id'));
const input = panel.querySelector('input[type=file]'); if (input) input.id = 'upload'; return Boolean(input)"""
)
SLIDE = (
    PANEL
    + """const range = panel.querySelector('input[type=range]'); range.value = range.max;
range.dispatchEvent(new Event('input', {bubbles: true}))"""
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.mark.parametrize("width", [390, 1280])
def test_every_tab_answers(browser, served, width):
    browser.open(served[0], width)
    browser.wait("return document.querySelectorAll('[role=tab]').length")
    assert browser.run(TABS) == list(ANSWERS)
    for tab, shown in ANSWERS.items():
        browser.wait(OPEN, tab)
        before = browser.run(TEXT, shown)
        browser.wait(CLICK, EXAMPLE)
        browser.wait(SEEN, shown)
        browser.wait(
            f"const [css, before] = arguments; return (function () {{ {TEXT} }})(css) !== before", shown, before
        )
        if tab == "HW5":
            browser.wait(
                f"{PANEL} return [...panel.querySelectorAll('.race')].every(x => x.innerText.includes('done'))"
            )
        assert browser.run("return document.documentElement.scrollWidth") <= width, tab
    loaded = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {urlsplit(name).hostname for name in loaded if not name.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def test_the_page_lives_on_after_bad_input(browser, served, tmp_path):
    browser.open(served[0], 1280)
    browser.wait(OPEN, "HW3")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    browser.wait(MARK)
    browser.upload("#upload", tmp_path / "broken.jpg")
    browser.wait(HOLDS, "This file is no image")
    browser.wait(CLICK, EXAMPLE)
    browser.wait(SEEN, ANSWERS["HW3"])
    assert not browser.run(HOLDS, "This file is no image")
    browser.wait(OPEN, "HW5")
    browser.wait(CLICK, "button.primary")
    browser.wait(HOLDS, "Write a sentence first")
    browser.wait(CLICK, EXAMPLE)
    browser.wait(SEEN, ANSWERS["HW5"])
    assert not browser.run(HOLDS, "Write a sentence first")
    browser.wait(OPEN, "HW4")
    browser.wait(MARK)
    browser.upload("#upload", wav(tmp_path, tone(0.1)))
    browser.wait(f"{PANEL} return panel.querySelectorAll('audio, .waveform-container').length")
    browser.wait(CLICK, "button.primary")
    browser.wait(HOLDS, "lasts 0.10 s, which is too short")
    browser.wait(CLICK, EXAMPLE)
    browser.wait(SEEN, ANSWERS["HW4"])


def test_what_is_uploaded_and_moved_is_answered(browser, served, tmp_path):
    browser.open(served[0], 1280)
    browser.wait(OPEN, "HW1")
    before = browser.wait(TEXT, ANSWERS["HW1"])
    browser.run(SLIDE)
    browser.wait(f"const [css, before] = arguments; return (function () {{ {TEXT} }})(css) !== before", ".big", before)
    browser.wait(OPEN, "HW2")
    browser.wait(MARK)
    browser.upload("#upload", wav(tmp_path, tone(1)))
    browser.wait(f"{PANEL} return panel.querySelectorAll('audio, .waveform-container').length")
    browser.wait(CLICK, "button.primary")
    browser.wait(SEEN, ANSWERS["HW2"])
    Image.new("RGB", (300, 200), "red").save(tmp_path / "photo.jpg")
    browser.wait(OPEN, "HW3")
    browser.wait(MARK)
    browser.upload("#upload", tmp_path / "photo.jpg")
    browser.wait(SEEN, ANSWERS["HW3"])
