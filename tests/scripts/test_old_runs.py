"""Runs in tests/old_runs, made before the folders were rearranged, still open, resume and predict."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from conftest import OLD, WRITERS, works

from datamodules.hw2_phoneme import PhonemeData
from scripts.run.checkpoint import load_model

pytestmark = pytest.mark.slow


def best_path(checkpoint, root):
    """Labels of all test frames on the best paths of their utterances."""
    model, data = load_model(checkpoint), PhonemeData(str(root), window=None)
    data.expect(model.facts)
    data.setup("predict")
    found = {}
    with torch.no_grad():
        for batch in data.predict_dataloader():
            found |= zip(model.of_each_row(batch, "row").tolist(), model.labels(batch).tolist(), strict=True)
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize("homework", WRITERS)
def test_an_old_run_predicts_and_resumes(homework, old_data, tmp_path):
    run = Path(shutil.copytree(OLD / homework, tmp_path / "run"))
    last, best = run / "checkpoints/last.ckpt", run / "checkpoints/best.ckpt"
    shutil.copyfile(last, best)  # the two were the same

    works("predict", "--run_dir", run, "--data.root", old_data, "--output", tmp_path / "again")
    (submission,) = run.glob("submission.*")
    said, says = submission.read_text("utf-8").splitlines(), (tmp_path / "again").read_text("utf-8").splitlines()
    if homework == "hw1_covid":  # numbers, which another order of additions changes in the last digit
        said, says = ([line.split(",") for line in lines] for lines in (said, says))
        assert says[0] == said[0]
        assert [row[0] for row in says] == [row[0] for row in said]
        assert [float(row[1]) for row in says[1:]] == pytest.approx([float(row[1]) for row in said[1:]], rel=1e-5)
    elif homework == "hw2_phoneme":  # frames were answered by the best path then, which phones are still read from
        assert len(says) == len(said)
        assert says[0] == said[0]
        assert said[1:] == [f"{number},{label}" for number, label in enumerate(best_path(last, old_data))]
    else:
        assert says == said

    works("fit", "--run_dir", run, "--resume", "true", "--data.root", old_data, "--trainer.max_epochs", 3)
    with open(run / "metrics.csv", newline="") as file:
        steps = {int(row["epoch"]): int(row["step"]) + 1 for row in csv.DictReader(file)}
    assert steps == {0: steps[0], 1: 2 * steps[0], 2: 3 * steps[0]}  # it went on and did not begin again
    assert last.read_bytes() != (OLD / homework / "checkpoints/last.ckpt").read_bytes()
