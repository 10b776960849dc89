"""callbacks/last_validation.py: what a run keeps was judged, and its pictures show the kept weights."""

import csv

import pytest
import torch
from conftest import works

from modules.hw1_covid import CovidRegressor
from modules.pictures import captions
from scripts.train import run_cli

STOPPER = "--trainer.callbacks+=EarlyStopping"


def judged(run):
    return [row for row in csv.DictReader((run / "metrics.csv").open()) if row.get("val/mse")]


@pytest.mark.parametrize("more", [["--trainer.max_steps=2"], ["--trainer.check_val_every_n_epoch=10"]])
def test_a_fit_that_ends_before_its_first_validation_is_judged_once(tmp_path, sample, experiment, more):
    run = tmp_path / "run"
    stopper = [STOPPER, "--trainer.callbacks.monitor=val/mse"]  # would end in an error without the validation
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", run, *more, *stopper)
    (row,) = judged(run)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.equal(best["state_dict"][name], last["state_dict"][name]) for name in last["state_dict"])
    said = works("test", "--run_dir", run, "--data.root", sample).out
    assert f"weights             best.ckpt of step {best['global_step']}" in said or "best.ckpt of step" in said
    assert f"{float(row['val/mse']):.4f}"[:5] in said, "the same rows, judged again"


def test_a_fit_that_was_judged_is_not_judged_again(trained):
    assert len(judged(trained)) == 2


def test_pictures_show_the_weights_of_best(tmp_path, sample, experiment, monkeypatch):
    """A rate that grows until training breaks down: the first epoch is the best, and the last is not."""
    seen = []

    def drawn(module):
        predicted, true = module._judged()
        seen.append(float((predicted - true).square().mean()))
        return {}

    monkeypatch.setattr(CovidRegressor, "draw", drawn)
    monkeypatch.setattr("callbacks.figures._wanted", lambda trainer: True)
    flags = ["--model.optimizer.lr=0.5", "--trainer.max_epochs=4", "--model.dropout=0.0"]
    words = ["fit", "--config", str(experiment), "--data.root", str(sample), "--run_dir", str(tmp_path / "run"), *flags]
    cli = run_cli(words)
    scores = [float(row["val/mse"]) for row in judged(tmp_path / "run")]
    assert min(scores) != scores[-1], "this run must get worse"
    assert seen[-1] == pytest.approx(min(scores), rel=1e-3)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in cli.model.state_dict().items()), "put back"


def test_every_figure_of_a_homework_has_a_caption(monkeypatch):
    """The names that modules and data draw, as they stand in the code."""
    import re
    from pathlib import Path

    root = Path(captions.__file__).parents[2]
    named = set()
    for path in [
        *(root / "modules").glob("hw*.py"),
        *(root / "datamodules").glob("hw*.py"),
        root / "modules/classifier.py",
    ]:
        text = path.read_text()
        if "def draw" in text:
            body = text[text.index("def draw") :]
            body = body[: body.find("\n    def ", 10)]
            named |= set(re.findall(r'"(\w+)": (?:\w+\(|figure)', body)) | set(re.findall(r'figures\["(\w+)"\]', body))
    assert len(named) > 12
    named |= {"loss", "learning_rate", "gradient_norm", "accuracy", "bleu", "runs_diff", "importance"}
    assert named <= captions.CAPTIONS.keys()


def test_a_caption_says_it_in_both_languages_where_a_font_can(monkeypatch):
    from matplotlib.figure import Figure

    for fonts in (["Some CJK"], []):
        monkeypatch.setattr(captions, "chinese_fonts", lambda fonts=fonts: fonts)
        figure = Figure(figsize=(7, 4))
        captions.explain("test_confusion", figure, "best.ckpt, step 3")
        assert figure.get_suptitle() == "Confusion matrix [best.ckpt, step 3]"
        assert figure.get_figwidth() == 7
        assert 4.3 < figure.get_figheight() < 5
        assert ("對角線" in figure.get_supxlabel()) == bool(fonts)
        assert "Dark off the diagonal" in figure.get_supxlabel()
