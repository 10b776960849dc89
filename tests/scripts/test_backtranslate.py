"""`leeml backtranslate`, and `leeml translate --way`, by the commands a user types."""

import json
import shutil

import pytest
import torch
import yaml
from conftest import answer, assert_fails, works
from translation_run import train, write_data

from modules.hw5_translation import Translator
from scripts import backtranslate
from scripts.backtranslate import Length
from scripts.run.budget import Speed
from scripts.translation import chunks, translator
from scripts.translation.reading import Line
from scripts.translation.translator import LineTranslator

pytestmark = pytest.mark.slow
MONO = 20  # lines of either language


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def mono(root):
    """Files of lines, by language; some are new and some are held out."""
    folder, found = root / "hw5_translation" / "sample", {}
    for language in ("en", "zh"):
        found[language] = root / f"mono.{language}"
        lines = (folder / f"raw.{language}").read_text(encoding="utf-8").splitlines(keepends=True)
        found[language].write_text("".join(lines[:MONO]), encoding="utf-8")
    return found


def words(root, mono, run_dir, *more):
    line = ("--config", root / "experiment.yaml", "--data.root", root, "--trainer.max_steps", "6")
    return ("backtranslate", *line, "--mono", mono["zh"], "--run_dir", run_dir, *more)


@pytest.fixture(scope="module")
def rounds(root, mono, tmp_path_factory):
    path = tmp_path_factory.mktemp("rounds") / "rounds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
        said = works(*words(root, mono, path, "--mono_source", mono["en"], "--rounds", "2", "--way", "noise"))
    return path, said


def read_table(path):
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    assert header == "en\tzh"
    return [row.split("\t") for row in rows]


def test_rounds_go_to_and_fro_and_say_first_how_long(rounds, mono):
    path, said = rounds
    promise = said.out.splitlines()[0]
    assert promise.startswith("leeml: 4 fits, about ")
    assert f"{3 * MONO} lines to translate, at most " in promise
    english, chinese = (mono[side].read_text(encoding="utf-8").splitlines() for side in ("en", "zh"))
    for name, column, lines in (("round_1/pairs", 1, chinese), ("round_2/pairs", 1, chinese)):
        assert [row[column] for row in read_table(path / f"{name}.tsv")] == lines
    assert [row[0] for row in read_table(path / "round_1" / "back_pairs.tsv")] == english
    expected = {
        "round_1/back": ("zh", "en", None),
        "round_1/forward": ("en", "zh", path / "round_1" / "pairs.tsv"),
        "round_2/back": ("zh", "en", path / "round_1" / "back_pairs.tsv"),
        "round_2/forward": ("en", "zh", path / "round_2" / "pairs.tsv"),
    }
    for run, (source, target, pairs) in expected.items():
        data = yaml.safe_load((path / run / "config.yaml").read_text())["data"]["init_args"]
        assert (data["source"], data["target"]) == (source, target)
        assert data["synthetic"] == (pairs and str(pairs))
        assert (path / run / "checkpoints" / "best.ckpt").is_file()
    assert "round 2, back   val/bleu" in said.out


def test_what_is_done_stays_and_the_rest_is_made_alike(rounds, root, mono, tmp_path):
    path, _ = rounds
    copy = tmp_path / "rounds"
    shutil.copytree(path, copy)
    record = json.loads((copy / "backtranslate.json").read_text())
    record["words"] = [word.replace(str(path), str(copy)) for word in record["words"]]
    (copy / "backtranslate.json").write_text(json.dumps(record))
    kept = (copy / "round_1" / "forward" / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    shutil.rmtree(copy / "round_2" / "forward")
    before = (copy / "round_2" / "pairs.tsv").read_bytes()
    (copy / "round_2" / "pairs.tsv").unlink()
    works("backtranslate", "--run_dir", copy, "--resume")
    assert (copy / "round_1" / "forward" / "checkpoints" / "best.ckpt").stat().st_mtime_ns == kept
    assert (copy / "round_2" / "pairs.tsv").read_bytes() == before
    states = [
        torch.load(folder / "round_2" / "forward" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (path, copy)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert_fails(copy, *words(root, mono, copy), says=["add --resume"])
    assert_fails(copy, *words(root, mono, copy, "--resume"), says=["begun with other flags"])


def test_a_run_of_ones_own_translates_back(root, mono, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
    back = train(root, tmp_path / "back", "--data.source", "zh", "--data.target", "en")
    said = works(*words(root, mono, tmp_path / "rounds", "--back", back, "--way", "sampling"))
    assert said.out.startswith("leeml: 1 fits, about ")
    assert {path.name for path in (tmp_path / "rounds" / "round_1").iterdir()} == {"pairs.tsv", "forward"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rounds", "2"], ["--rounds 2", "--mono_source"]),
        (["--rounds", "0"], ["--rounds 0"]),
        (["--data.synthetic", "x"], ["--data.synthetic: backtranslate settles that"]),
        (["--budget", "1h"], ["--budget: backtranslate settles that"]),
        (["--resume"], ["holds no rounds to go on with"]),
        (["--way", "beams"], ["--way", "did you mean beam?"]),
    ],
)
def test_mistakes_are_one_line(root, mono, tmp_path, more, says):
    assert_fails(tmp_path, *words(root, mono, tmp_path / "rounds", *more), says=says)
    assert not (tmp_path / "rounds").exists()


def test_text_of_the_other_language_and_fits_without_end_are_refused(root, mono, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.run.budget.TRIAL", (0.0, 0.05, 0.05))
    wrong = mono | {"zh": mono["en"]}
    assert_fails(tmp_path, *words(root, wrong, tmp_path / "rounds"), says=["mono.en: does not look like zh", "--mono"])
    endless = words(root, mono, tmp_path / "rounds", "--trainer.max_steps", "-1", "--trainer.max_epochs", "-1")
    assert_fails(tmp_path, *endless, says=["--trainer.max_epochs"])


def test_the_seconds_of_a_fit():
    speed = Speed(setup=5.0, step=2.0, validation=3.0, save=0.0)
    assert Length(steps=100, epochs=float("inf"), accumulated=1, interval=50).seconds(speed, 1000) == 5 + 200 + 2 * 3
    # 4 epochs of 30 batches are 60 steps of two; a validation every half epoch
    assert Length(float("inf"), 4, 2, 0.5).seconds(speed, 30) == 5 + 120 + 8 * 3
    assert backtranslate.in_hours(90) == "1.5 min"
    assert backtranslate.in_hours(7200) == "2.0 h"


# leeml translate --way


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return train(root, tmp_path_factory.mktemp("run") / "run")


def test_what_is_drawn_depends_on_seed_and_lines_alone(run, root, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 8)
    source = root / "hw5_translation" / "sample" / "test.en"

    def said(*more):
        torch.randn(3)
        return works("translate", "--run_dir", run, source, *more).out

    for way in ("sampling", "noise"):
        whole = said("--way", way)
        assert whole == said("--way", way)
        assert whole == "".join(said("--way", way, "--shard", f"{part}/2") for part in (1, 2))
        assert whole != said("--way", way, "--seed", "1")
        assert whole != said()
    part = tmp_path / "out.zh"
    works("translate", "--run_dir", run, source, "--way", "noise", "--output", part)
    assert part.read_text(encoding="utf-8") == said("--way", "noise")


def test_samples_come_as_often_as_they_are_likely(run):
    """Of one word: the share of each first piece against the network's own probabilities."""
    model = LineTranslator([(run / "checkpoints" / "best.ckpt", [])], "cpu", 4096)
    source = torch.tensor([[*model.tokenizer.encode(["the small dog"])[0], 3]])
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = model.model.net(source, torch.tensor([[model.model.ends.bos]]))[0, 0]
        logits[[model.model.ends.pad, model.model.ends.bos]] = -torch.inf
        likeliest = int(logits.argmax())
        drawn = [0, 0]
        model.model.text = lambda tokens: str(tokens[0])
        said = model.model.sampled(source.expand(4000, -1))
    drawn = said.count(str(likeliest)) / len(said)
    assert drawn == pytest.approx(float(logits.softmax(0)[likeliest]), abs=0.03)


def test_what_says_all_at_once_draws_nothing(run, monkeypatch):
    class Other(Translator):
        def translate(self, source, beam=None):
            return [""] * len(source)

    loaded = translator.load_translator(run / "checkpoints" / "best.ckpt", [], False)
    loaded.__class__ = Other
    monkeypatch.setattr(translator, "load_translator", lambda path, flags, trust: loaded)
    said = answer("translate", "--run_dir", run, "--way", "sampling", __file__)
    assert said.code == 1
    assert "--way beam or noise" in said.err
    noise = LineTranslator([(run, [])], "cpu", 4096, way="noise")
    assert noise([Line("hello", "x")]) == [""]
