"""HW5 from the command line: fit, validate, test, predict, go on, and mistakes in one line."""

import json
import shutil

import pytest
import torch
from conftest import assert_fails, works

from callbacks.curves import read_metrics

pytestmark = pytest.mark.slow

EXPERIMENT = """\
model:
  class_path: Translator
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.006}}
    net:
      class_path: modules.nets.seq2seq.TransformerSeq2Seq
      init_args: {d_model: 32, heads: 2, d_ff: 64, layers: 1, norm: pre, positions: learned, max_length: 40}
    beam: 2
data:
  class_path: TranslationData
  init_args:
    vocabulary: 600
    max_length: 40
    max_tokens: 500
    folds: 20
    quick: 20
trainer:
  max_epochs: 3
  gradient_clip_val: 1.0
  callbacks:
    - {class_path: WarmupScheduler, init_args: {warmup: 5, schedule: constant}}
    - {class_path: ScheduledSampling, init_args: {decay: exponential, k: 0.998, begin: 10}}
"""
TRAINED, TESTED = 1000, 30


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    works("data", "sample", "hw5_translation", root)
    for path in (root / "hw5_translation" / "sample").iterdir():
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[: {"raw": TRAINED, "test": TESTED}[path.stem]]), "utf-8")
    (root / "translation.yaml").write_text(EXPERIMENT)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "translation"
    works("fit", "--config", root / "translation.yaml", "--data.root", root, "--run_dir", run)
    return run


def scores(run):
    return json.loads((run / "scores.json").read_text())


def test_fit_validate_test_and_predict(run, root, tmp_path, pictures):
    metrics = read_metrics(run / "metrics.csv")
    judged = metrics["val/bleu"]
    assert len(judged) == 3
    best = max(bleu for _, bleu in judged)
    assert best > 1
    assert metrics["val/loss"][-1][1] < 0.8 * metrics["val/loss"][0][1]
    assert scores(run)["best val/bleu"] == pytest.approx(best, abs=1e-3)
    step = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    assert dict(judged)[step - 1] == pytest.approx(best, abs=1e-3)
    works("validate", "--run_dir", run)
    assert scores(run)["val/bleu"] == pytest.approx(best, abs=1e-3)
    said = works("test", "--run_dir", run)
    assert f"{TESTED} test sentences whose translations are known" in said.out
    assert scores(run)["test/bleu"] > 1
    assert {path.stem for path in (run / "figures").glob("*.png")} >= {
        "test_attention", "test_bleu_by_length", "test_position_similarity",
    }  # fmt: skip
    # on another machine: the checkpoint, and the sentences to translate alone
    alone = tmp_path / "alone" / "hw5_translation"
    alone.mkdir(parents=True)
    shutil.copy(root / "hw5_translation" / "sample" / "test.en", alone)
    ckpt = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt")
    works("predict", "--run_dir", run)
    works("predict", "--ckpt_path", ckpt, "--data.root", alone.parent, "--output", tmp_path / "alone.txt")
    text = (run / "submission.txt").read_text("utf-8")
    assert text == (tmp_path / "alone.txt").read_text("utf-8")
    assert text.endswith("\n")
    lines = text.splitlines()
    assert len(lines) == TESTED
    assert sum(line.endswith(("。", "?")) for line in lines) > TESTED / 2  # cleaned, as the course's judge wants it


def test_going_on_is_the_same_as_a_longer_run(root, tmp_path):
    line = [
        "fit",
        "--config",
        root / "translation.yaml",
        "--data.root",
        root,
        "--data.max_tokens",
        3000,
        "--data.quick",
        3,
    ]
    whole, part = tmp_path / "whole", tmp_path / "part"
    works(*line, "--run_dir", whole, "--trainer.max_epochs", 2)
    works(*line, "--run_dir", part, "--trainer.max_epochs", 1)
    works("fit", "--run_dir", part, "--resume", "--trainer.max_epochs", 2)
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, part))
    assert one["global_step"] == two["global_step"]
    for name, weight in one["state_dict"].items():
        assert torch.equal(two["state_dict"][name], weight), name
    assert read_metrics(whole / "metrics.csv")["val/bleu"] == read_metrics(part / "metrics.csv")["val/bleu"]


# mistakes


def test_the_other_direction_is_refused(run, tmp_path):
    assert_fails(
        tmp_path, "predict", "--run_dir", run, "--data.source", "zh", "--data.target", "en",
        says=["data.source and data.target are zh and en, but the model was trained from en to zh"],
    )  # fmt: skip


def test_too_few_positions_are_said(root, tmp_path):
    line = ["fit", "--config", root / "translation.yaml", "--data.root", root, "--run_dir", tmp_path / "run"]
    says = ["model.net.max_length is 40, but a sentence of the data has 41 tokens; raise it, or lower data.max_length"]
    assert_fails(tmp_path, *line, "--data.max_length", 41, says=says)


def test_unequal_line_counts_are_both_said(root, tmp_path):
    folder = tmp_path / "data" / "hw5_translation"
    shutil.copytree(root / "hw5_translation" / "sample", folder)
    with (folder / "raw.zh").open("a", encoding="utf-8") as file:
        file.write("多一行。\n")
    line = ["fit", "--config", root / "translation.yaml", "--data.root", tmp_path / "data"]
    assert_fails(tmp_path, *line, "--run_dir", tmp_path / "run", says=["raw.en has 1,000 lines", "raw.zh has 1,001"])


def test_nothing_to_translate_is_said(run, root, tmp_path):
    folder = tmp_path / "data" / "hw5_translation"
    folder.mkdir(parents=True)
    shutil.copy(root / "hw5_translation" / "sample" / "raw.en", folder)
    line = ["predict", "--run_dir", run, "--data.root", tmp_path / "data"]
    assert_fails(tmp_path, *line, says=["no test set here (test.en or test.raw.en)"])
