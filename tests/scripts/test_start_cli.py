"""Runs that begin with another run's weights, by commands: on rewards, and one that produces all tokens at once."""

import csv
import re
import shutil

import pytest
import torch
from conftest import answer, assert_fails, works
from translation_run import train, write_data

from scripts.benches import hw5_translation

pytestmark = pytest.mark.slow

OBJECTIVE = """\
model:
  class_path: Translator
  init_args:
    optimizer: {class_path: Adam, init_args: {lr: 1.0e-5}}
    objective:
      class_path: modules.objectives.PolicyGradient
      init_args: {samples: 2, weight: 0.1}
trainer:
  max_steps: 2
  log_every_n_steps: 1
"""
PARALLEL = """\
model:
  class_path: MaskedTranslator
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
    net:
      class_path: modules.nets.seq2seq.TransformerSeq2Seq
      init_args: {d_model: 32, heads: 2, d_ff: 64, layers: 1, dropout: 0.0, norm: pre, causal: false}
    iterations: 4
    candidates: 2
trainer:
  max_steps: 20
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Root of the data with a run on cross-entropy in it, and a run on rewards that began with that."""
    root = write_data(tmp_path_factory.mktemp("objective"))
    (root / "objective.yaml").write_text(OBJECTIVE)
    first = train(root, root / "first")
    train(root, root / "second", "--config", root / "objective.yaml", "--model.start", first)
    return root


def weights(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_it_goes_on_from_the_other_runs_best_weights_with_a_fresh_optimizer(begun):
    first, second = weights(begun / "first", "best"), weights(begun / "second")
    assert first.keys() == second.keys()
    moved = max(float((second[key] - value).abs().max()) for key, value in first.items())
    assert 0 < moved < 5e-5  # two steps of Adam
    with open(begun / "second" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/reward"]]
    assert len(rows) == 2
    for row in rows:
        assert 0 <= float(row["train/reward"]) <= 1
        assert float(row["train/advantage_variance"]) >= 0
        assert float(row["train/entropy"]) > 0


def test_it_predicts_and_is_resumed_where_the_other_run_is_no_more(begun, tmp_path):
    alone = tmp_path / "run"
    shutil.copytree(begun / "second", alone)
    config = (alone / "config.yaml").read_text()
    (alone / "config.yaml").write_text(config.replace(str(begun / "first"), str(tmp_path / "gone")))
    path = alone / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["model"]["init_args"]["start"] = str(tmp_path / "gone")
    torch.save(checkpoint, path)
    works("predict", "--run_dir", alone)
    works("predict", "--ckpt_path", path, "--data.root", begun, "--output", tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == (alone / "submission.txt").read_bytes()
    works("fit", "--run_dir", alone, "--resume", "--trainer.max_steps", 3)
    assert torch.load(alone / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_what_cannot_be_begun_with_is_one_line(begun, tmp_path):
    line = ["fit", "--config", begun / "experiment.yaml", "--data.root", begun, "--run_dir", tmp_path / "run"]
    start = ["--model.start", begun / "first"]
    assert_fails(tmp_path, *line, "--model.start", tmp_path / "none", says=["model.start", "no such checkpoint"])
    sizes = ["--model.net.d_model", 16]
    assert_fails(tmp_path, *line, *start, *sizes, says=["do not fit model.net", "same settings"])
    turned = ["--data.source", "zh", "--data.target", "en"]
    assert_fails(tmp_path, *line, *start, *turned, says=["a source of another run (en, here zh)"])
    assert_fails(tmp_path, *line, *start, "--data.fold", 1, says=["a tokenizer of another run"])
    wrong = ["--config", begun / "objective.yaml", "--model.objective.samples", 0]
    assert_fails(tmp_path, *line, *wrong, says=["model.objective.samples is 0"])


def test_without_another_run_it_says_so(begun):
    line = ["fit", "--config", begun / "experiment.yaml", "--config", begun / "objective.yaml", "--data.root", begun]
    with pytest.warns(UserWarning, match=r"begins with random weights.*--model\.start"):
        assert answer(*line, "--trainer.fast_dev_run", 1).code == 0


def test_one_that_says_all_words_at_once_begins_with_one_that_goes_word_by_word(begun, tmp_path, monkeypatch):
    """And the bench of decoding scores it as `leeml validate` does, which tries one length."""
    (tmp_path / "parallel.yaml").write_text(PARALLEL)
    flags = ["--config", tmp_path / "parallel.yaml", "--model.start", begun / "first"]
    train(begun, tmp_path / "parallel", *flags)
    first, found = weights(begun / "first", "best"), weights(tmp_path / "parallel")
    own = {key.split(".")[0] for key in found.keys() - first.keys()}
    assert own == {"unknown", "predictor"}
    assert found.keys() >= first.keys()
    scores = works("validate", "--run_dir", tmp_path / "parallel", "--data.root", begun, "--data.quick", 1000).out
    bleu = float(re.search(r"^  val/bleu +([\d.]+)$", scores, re.MULTILINE)[1])
    monkeypatch.setattr(hw5_translation, "ALONE", 2)
    monkeypatch.setattr(hw5_translation, "BEAM", 2)
    monkeypatch.setattr(
        hw5_translation, "medians", lambda parts, repeats: {k: part() or 1.0 for k, part in parts.items()}
    )
    runs = [begun / "first", tmp_path / "parallel"]
    said = works("bench", "hw5_translation", "--threads", 1, "--data.root", begun, "--decoding", *runs).out
    rows = dict(re.findall(r"^  (\S*(?:first|parallel), .*?)  +(.*)$", said, re.MULTILINE))
    names = [name.split(", ", 1)[1] for name in rows]
    assert names == [
        "beam 2", "greedy", "1 iteration, 1 length", "4 iterations, 1 length", "10 iterations, 1 length",
        "10 iterations, 2 lengths", "10 iterations, 2 lengths, judged token by token",
    ]  # fmt: skip
    judged = next(cells for name, cells in rows.items() if "4 iterations, 1 length" in name)
    assert float(judged.split()[0]) == pytest.approx(bleu, abs=0.006)


def test_runs_of_opposite_directions_are_not_compared(begun, tmp_path):
    back = shutil.copytree(begun / "first", tmp_path / "back")
    path = back / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["facts"] |= {"source": "zh", "target": "en"}
    torch.save(checkpoint, path)
    line = "bench", "hw5_translation", "--threads", 1, "--data.root", begun, "--decoding"
    assert_fails(tmp_path, *line, begun / "first", back, says=["back translates to en", "one direction"])
    assert_fails(tmp_path, *line, begun / "first", "--repeats", 0, says=["--repeats 0"])
