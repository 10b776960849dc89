"""Two processes do what one does: same weights to float tolerance, same metrics, every row predicted once."""

import csv
import json
import os
import subprocess
import sys
from contextlib import chdir

import numpy as np
import pytest
import torch
from wandb_files import config_of, history_of, read_run, without_account

from callbacks import figures
from callbacks.curves import read_metrics
from datamodules.generated import write_covid, write_food, write_speakers, write_translation
from datamodules.speech.libriphone import Utterance, write_layout
from scripts.leeml import main

pytestmark = pytest.mark.slow

FOOD = """\
model:
  class_path: FoodClassifier
  init_args:
    optimizer: {class_path: SGD, init_args: {lr: 0.01, momentum: 0.9}}
    net: {class_path: small.Net}
    label_smoothing: 0.1
data:
  class_path: FoodData
  init_args:
    image_size: 32
    augment:
      - {class_path: torchvision.transforms.v2.RandomResizedCrop, init_args: {size: 32}}
    unlabelled: 1
    batch_size: 50
trainer:
  max_epochs: 2
  logger: false
"""
NET = """\
from torch import nn

class Net(nn.Sequential): # without batch norm, whose statistics are each process's own
    def __init__(self, num_classes):
        layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, num_classes)
        super().__init__(*layers)
"""
PHONEMES = """\
model:
  class_path: PhonemeClassifier
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
    net: {class_path: modules.nets.frame_encoders.TransformerFrames, init_args: {d_model: 16, d_ff: 16, dropout: 0.0}}
    members: 2
data:
  class_path: PhonemeData
  init_args:
    window: null
    folds: 2
    batch_size: 4800 # three of the longest for two ranks: else their last batches are cut otherwise than one's
trainer:
  max_epochs: 3
  logger: false
"""
SPEAKERS = """\
model:
  class_path: SpeakerClassifier
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.02, eps: 1.0e-4}} # a smaller eps makes much of rounding errors
    net: # whose batch norm takes the frames of both processes
      class_path: modules.nets.frame_encoders.ConformerFrames
      init_args: {d_model: 16, d_ff: 16, dropout: 0.0, kernel: 3, relative: false}
    pooling: statistics
    head: {class_path: modules.nets.margin.MarginSoftmax, init_args: {scale: 15.0, margin: 0.1}}
data:
  class_path: SpeakerData
  init_args:
    folds: 4
    segment: 40
    batch_size: 50
    train_snr: [0.0, 20.0]
trainer:
  max_epochs: 3
"""

SENTENCES = """\
model:
  class_path: Translator
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.02, eps: 1.0e-4}}
    net:
      class_path: modules.nets.seq2seq.TransformerSeq2Seq
      init_args: {d_model: 16, heads: 2, d_ff: 16, layers: 1, dropout: 0.0, norm: pre}
data:
  class_path: TranslationData
  init_args:
    vocabulary: 600
    max_tokens: 400 # over both ranks
    folds: 10
    quick: 9
trainer:
  max_epochs: 6
  check_val_every_n_epoch: 3
  accumulate_grad_batches: 3
"""

SCRIPT = """\
import json, sys
from callbacks import figures
from scripts.leeml import main

figures._wanted = lambda trainer: "phonemes" in trainer.default_root_dir  # drawing takes long
# one start of python for all homeworks; Lightning starts the second process with the same line
for line in json.load(open(sys.argv[1])):
    assert main(line) == 0, line
"""


def lines(base, plan, name, preset):
    """Command lines that fit every homework of the plan, and predict with those that have a submission to compare."""
    for homework, flags in plan.items():
        run = f"{base}/{homework}_{name}"
        yield ["fit", *flags, *preset(homework), "--data.root", str(base), "--run_dir", run]
        if homework in ("covid", "food", "sentences"):
            yield ["predict", "--run_dir", run, *(["--trust"] if homework == "food" else [])]  # a net of the test's own


def write_utterances(folder):
    """Utterances so long that the five held out are 2 batches for one rank and 1 for the other (4096 frames each)."""
    rng = np.random.default_rng(0)
    labels = [np.repeat(rng.integers(0, 4, n // 7 + 1), 7)[:n] for n in rng.integers(1400, 1500, 10)]
    heard = [rng.normal(0, 0.3, (len(y), 39)) + np.eye(4, 39)[y] for y in labels]
    spoken = [Utterance(str(k), x, y) for k, (x, y) in enumerate(zip(heard, labels, strict=True))]
    write_layout(folder, "train", spoken, ["sil", "a", "b", "c"])


def write_sentences(folder):
    write_translation(folder)
    for name, count in {"raw.en": 300, "raw.zh": 300, "test.en": 21, "test.zh": 21}.items():
        lines = (folder / name).read_text("utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]), "utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder with a run of one process and one of two of each homework, such as covid_one and covid_two."""
    base = tmp_path_factory.mktemp("ddp")
    write_covid(base / "hw1_covid" / "sample")
    write_utterances(base / "hw2_phoneme" / "sample")
    write_food(base / "hw3_food" / "sample")
    write_speakers(base / "hw4_speaker" / "sample")
    write_sentences(base / "hw5_translation" / "sample")
    short = "--trainer.max_epochs 3 --model.dropout 0 --data.members 2 --data.batch_size 250"
    plan = {"covid": ["--config", "configs/hw1_covid/strong.yaml", *short.split()]}
    for homework, text in {"phonemes": PHONEMES, "food": FOOD, "speakers": SPEAKERS, "sentences": SENTENCES}.items():
        (base / f"{homework}.yaml").write_text(text)
        plan[homework] = ["--config", f"{base}/{homework}.yaml"]
    (base / "small.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch, chdir(base):
        patch.syspath_prepend(base)
        patch.setattr(figures, "_wanted", lambda trainer: False)
        for line in lines(base, plan, "one", lambda homework: []):
            assert main(line) == 0
    (base / "script.py").write_text(SCRIPT)

    def preset(homework):
        names = ["ddp", "wandb"] if homework == "covid" else ["ddp"]
        return [part for name in names for part in ("--config", f"configs/presets/{name}.yaml")]

    (base / "two.json").write_text(json.dumps(list(lines(base, plan, "two", preset))))
    done = subprocess.run(
        [sys.executable, base / "script.py", base / "two.json"], cwd=base,
        env=without_account(base) | {"CUDA_VISIBLE_DEVICES": "", "LEEML_CACHE": os.environ["LEEML_CACHE"]},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return base


def pair(base, homework):
    """Folders of the runs of one process and of two."""
    return [base / f"{homework}_{name}" for name in ("one", "two")]


def assert_same_weights(runs, steps, relative=1e-3):
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    assert one["global_step"] == two["global_step"] == steps
    for name, weight in one["state_dict"].items():
        # batch norm takes this bias away: its gradient is rounding errors alone, and the running mean follows the bias
        if name.endswith(("depthwise.bias", "batch_norm.running_mean")):
            continue
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-4, rtol=relative, msg=name)


def test_weights_agree(base):
    assert_same_weights(pair(base, "covid"), 3 * 9, 1e-4)


def test_metrics_agree(base):
    one, two = (json.loads((run / "scores.json").read_text()) for run in pair(base, "covid"))
    assert one["best val/mse"] == pytest.approx(two["best val/mse"], rel=1e-4)


def test_two_processes_have_one_wandb_run(base):
    records = read_run(base / "covid_two")
    found = config_of(records)["trainer"]
    assert (found["strategy"], found["devices"]) == ("ddp", 2)
    assert [row["epoch"] for row in history_of(records) if "val/mse" in row] == [0, 1, 2]


def test_predictions_agree_row_by_row(base):
    rows = []
    for run in pair(base, "covid"):
        with open(run / "submission.csv", newline="") as file:
            rows.append([(int(r["id"]), float(r["tested_positive"])) for r in csv.DictReader(file)])
    assert [i for i, _ in rows[0]] == [i for i, _ in rows[1]] == list(range(1075))
    assert [p for _, p in rows[0]] == pytest.approx([p for _, p in rows[1]], abs=1e-3)


def test_images_and_their_noise_agree(base):
    runs = pair(base, "food")
    assert_same_weights(runs, 2 * 6)
    lines = [(run / "submission.csv").read_text().splitlines() for run in runs]
    assert len(lines[0]) == len(lines[1]) == 45
    assert sum(a == b for a, b in zip(*lines, strict=True)) >= 44  # a tie may fall either way


def test_whole_utterances_agree(base):
    runs = pair(base, "phonemes")
    assert_same_weights(runs, 3 * 2)
    one, two = (json.loads((run / "scores.json").read_text()) for run in runs)
    assert one["best val/accuracy"] == pytest.approx(two["best val/accuracy"], abs=1e-3)
    assert one["best val/accuracy"] > 0.4  # chance: 0.25
    assert {path.stem for path in (runs[1] / "figures").iterdir()} >= {"class_accuracy", "confusion"}


@pytest.mark.parametrize(("homework", "steps"), [("speakers", 3 * 3), ("sentences", 6 * 5)])
def test_stretches_and_token_buckets_agree(base, homework, steps):
    """Counts of tokens differ between ranks and between the batches of an accumulated step."""
    runs = pair(base, homework)
    assert_same_weights(runs, steps)
    one, two = (read_metrics(run / "metrics.csv") for run in runs)
    for name in ("train/loss", "val/loss"):
        assert one[name] == [(step, pytest.approx(value, rel=1e-3)) for step, value in two[name]], name
        assert one[name][-1][1] < 0.95 * one[name][0][1], name
    metric = {"speakers": "val/accuracy", "sentences": "val/bleu"}[homework]
    assert [value for _, value in one[metric]] == pytest.approx([value for _, value in two[metric]], abs=1e-3)


def test_every_sentence_is_translated_once(base):
    one, two = ((run / "submission.txt").read_text("utf-8").splitlines() for run in pair(base, "sentences"))
    assert len(one) == len(two) == 21
    assert len(set(one)) > 10
    assert sum(a == b for a, b in zip(one, two, strict=True)) >= 20  # a tie may fall either way
