"""HW2 from the command line: sample, fit, test, predict, kfold, and recordings prepared to be trained on and tested."""

import csv
import functools
import json
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import yaml
from conftest import answer, assert_fails, works
from numpy.lib.stride_tricks import sliding_window_view

from datamodules import hw2_phoneme
from datamodules.files.places import PROJECT
from datamodules.speech.packed import windows
from modules.hw2_phoneme import PhonemeClassifier
from modules.nets.window_mlp import WindowMLP

pytestmark = pytest.mark.slow

WINDOW = """\
model:
  class_path: PhonemeClassifier
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.005}}
    net: {class_path: modules.nets.window_mlp.WindowMLP, init_args: {hidden: [128], batch_norm: true}}
data:
  class_path: PhonemeData
  init_args: {window: 5, batch_size: 256}
trainer:
  max_epochs: 2
"""
WHOLE = """\
model:
  class_path: PhonemeClassifier
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.03}}
    net: {class_path: modules.nets.frame_encoders.TransformerFrames, init_args: {d_model: 16, d_ff: 32}}
    members: 2
    augment: [{class_path: modules.nets.spec_augment.SpecAugment}]
    smoothing: 0.5
data:
  class_path: PhonemeData
  init_args: {window: null, batch_size: 1500}
trainer:
  max_epochs: 3
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    works("data", "sample", "hw2_phoneme", root)
    (root / "window.yaml").write_text(WINDOW)
    (root / "whole.yaml").write_text(WHOLE)
    return root


@pytest.fixture(scope="module", params=["window", "whole"])
def phone_run(request, root, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / request.param
    config = root / f"{request.param}.yaml"
    # the flag wins over the file
    flags = ["--model.net.init_args.hidden", "[32]"] if request.param == "window" else []
    works("fit", "--config", config, "--data.root", root, "--run_dir", run, *flags)
    return run


def scores(run):
    return json.loads((run / "scores.json").read_text())


def test_fit_test_and_predict(phone_run, root, tmp_path):
    best = torch.load(phone_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["facts"]["window"] == (5 if phone_run.name == "window" else None)
    widths = {tuple(w.shape) for name, w in best["state_dict"].items() if name.endswith("heads.0.1.weight")}
    assert widths == {(41, 32 if phone_run.name == "window" else 16)}
    assert scores(phone_run)["best val/accuracy"] > 0.35  # the commonest class: 0.21
    said = works("test", "--run_dir", phone_run)
    assert "held-out" in said.out
    found = scores(phone_run)
    assert found["test/accuracy"] == pytest.approx(found["best val/accuracy"], abs=1e-4)
    assert 0 < found["test/accuracy_without_silence"] < 1
    assert found["test/phone_error_rate"] > 0

    # the file of answers, and the same from the checkpoint alone where there is nothing but the test part
    works("predict", "--run_dir", phone_run)
    raw = (phone_run / "submission.csv").read_bytes()
    assert raw.endswith(b"\r\n")
    assert raw.count(b"\n") == raw.count(b"\r\n")
    header, *rows = csv.reader(raw.decode().splitlines())
    sample = root / "hw2_phoneme" / "sample"
    names = (sample / "test_split.txt").read_text().split()
    frames = sum(len(torch.load(sample / "feat" / "test" / f"{n}.pt", weights_only=True)) for n in names)
    assert header == ["Id", "Class"]
    assert [int(number) for number, _ in rows] == list(range(frames))
    assert {int(c) for _, c in rows} <= set(range(41))
    assert len({c for _, c in rows}) > 5
    alone = tmp_path / "alone" / "hw2_phoneme"
    (alone / "feat").mkdir(parents=True)
    (alone / "feat" / "test").symlink_to(sample / "feat" / "test")
    (alone / "test_split.txt").write_text("\n".join(names))
    best_alone = ["--ckpt_path", phone_run / "checkpoints" / "best.ckpt", "--data.root", alone.parent]
    works("predict", *best_alone, "--output", tmp_path / "alone.csv")
    assert (tmp_path / "alone.csv").read_bytes() == raw


def test_a_derived_batch_stands_in_the_config_and_resumes(root, tmp_path):
    line = ["fit", "--config", root / "whole.yaml", "--data.batch_size", "null", "--data.root", root]
    line += ["--run_dir", tmp_path / "run", "--trainer.limit_val_batches", "0"]
    works(*line, "--trainer.max_steps", "2")
    saved = tmp_path / "run" / "config.yaml"
    derived = yaml.safe_load(saved.read_text())["data"]["init_args"]["batch_size"]
    assert derived == hw2_phoneme.FEWEST
    works(*line, "--trainer.max_steps", "3", "--resume")  # in the middle of an epoch, by the same command
    assert yaml.safe_load(saved.read_text())["data"]["init_args"]["batch_size"] == derived


def test_boss_on_the_rows_of_2021(root, tmp_path):
    sample = root / "hw2_phoneme" / "sample"
    folder = tmp_path / "hw2_phoneme" / "timit_11"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        names = (sample / f"{part}_split.txt").read_text().split()
        spoken = [torch.load(sample / "feat" / part / f"{name}.pt", weights_only=True).numpy() for name in names]
        padded = [np.pad(x, ((5, 5), (0, 0)), "edge") for x in spoken]
        rows = [sliding_window_view(x, 11, axis=0).transpose(0, 2, 1).reshape(-1, 429) for x in padded]
        np.save(folder / f"{part}_11.npy", np.concatenate(rows))
    labels = [line.split()[1:] for line in (sample / "train_labels.txt").read_text().splitlines()]
    np.save(folder / "train_label_11.npy", np.array([str(int(y) % 39) for of_one in labels for y in of_one]))

    line = [
        "--config",
        PROJECT / "configs/hw2_phoneme/boss.yaml",
        "--data.root",
        tmp_path,
        "--run_dir",
        tmp_path / "run",
    ]
    small = {"d_model": 32, "d_ff": 64, "layers": 1, "kernel": 7, "dropout": 0}
    flags = [f"--model.net.{name}={value}" for name, value in small.items()]
    works("fit", *line, *flags, "--model.members=1", "--model.optimizer.lr=0.01", "--trainer.max_epochs=2")
    assert scores(tmp_path / "run")["best val/accuracy"] > 0.35  # the commonest class: 0.2
    works("predict", "--run_dir", tmp_path / "run")
    _, *rows = csv.reader((tmp_path / "run" / "submission.csv").read_text().splitlines())
    assert [int(number) for number, _ in rows] == list(range(sum(map(len, spoken))))
    assert len({c for _, c in rows}) > 5


@pytest.mark.parametrize("phone_run", ["window"], indirect=True)
@pytest.mark.usefixtures("pictures")
def test_pictures_of_a_test(phone_run):
    works("test", "--run_dir", phone_run)
    names = {path.stem for path in (phone_run / "figures").glob("test_*.png")}
    assert {"test_confusion", "test_class_accuracy", "test_utterance"} <= names


def test_kfold_judges_every_frame_once(root, tmp_path, monkeypatch):
    monkeypatch.setattr(hw2_phoneme, "JUDGED", 300)  # many batches, by length: not the order of the test file
    run = tmp_path / "folds"
    line = ["--config", root / "window.yaml", "--data.root", root, "--folds", 2, "--run_dir", run]
    said = works("kfold", *line, "--trainer.max_epochs", 1)
    with open(run / "out_of_fold.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "fold", "true", "predicted"]
    lines = (root / "hw2_phoneme" / "sample" / "train_labels.txt").read_text().splitlines()
    expected = {f"{name}:{t}": y for name, *labels in map(str.split, lines) for t, y in enumerate(labels)}
    assert {row[0]: row[2] for row in rows} == expected
    assert len(rows) == len(expected)
    sides = {(row[0].split(":")[0], row[1]) for row in rows}
    assert len(sides) == 60, "an utterance in two folds"
    right = [sum(r[2] == r[3] for r in rows if r[1] == f) / sum(r[1] == f for r in rows) for f in "01"]
    assert scores(run)["folds"] == pytest.approx(right, abs=1e-4)
    assert "frame accuracy" in said.out
    header, *answers = csv.reader((run / "submission.csv").read_text().splitlines())
    assert header == ["Id", "Class"]
    data = hw2_phoneme.PhonemeData(root=str(root), window=5)
    data.setup("predict")
    shares = torch.zeros(len(answers), 41)
    for k in range(2):
        module = PhonemeClassifier(None, functools.partial(WindowMLP, hidden=[128], batch_norm=True))
        checkpoint = torch.load(run / f"fold_{k}" / "checkpoints" / "last.ckpt", weights_only=True)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        rows = torch.arange(len(answers))
        module.eval()
        x = windows(data.test.frames, data.test.offsets, rows, 5)
        shares += module(x)[0].softmax(1).detach()
    right = sum(int(answer) == share for (_, answer), share in zip(answers, shares.argmax(1).tolist(), strict=True))
    assert right / len(answers) > 0.999  # rounding may decide a tie


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, real_data):
    """Folders of the real recordings: five speakers to train on, two others to test with."""
    folder = tmp_path_factory.mktemp("recordings")
    with ZipFile(real_data("hw2_phoneme") / "timit_sample_13spk.zip") as archive:
        members = [name for name in archive.namelist() if name.endswith((".wav", ".phn"))]
        speakers = sorted({name.split("/")[0] for name in members})
        for part, chosen in (("mine", speakers[:5]), ("others", speakers[5:7])):
            archive.extractall(folder / part, [name for name in members if name.split("/")[0] in chosen])
    return folder


def test_recordings_are_prepared_trained_on_and_tested(root, recordings, tmp_path, caplog):
    works("data", "prepare", "hw2_phoneme", tmp_path / "mine", "--source", recordings / "mine")
    run = tmp_path / "run"
    works("fit", "--config", root / "whole.yaml", "--data.root", tmp_path / "mine", "--run_dir", run)
    assert "held out by speaker, 39 classes" in caplog.text
    other = tmp_path / "other"
    works("data", "prepare", "hw2_phoneme", other, "--source", recordings / "others", "--split", "test")
    said = works("test", "--run_dir", run, "--data.root", other)
    labels = (other / "hw2_phoneme" / "prepared" / "test_labels.txt").read_text().splitlines()
    frames = sum(len(line.split()) - 1 for line in labels)
    assert len(labels) == 20
    assert f"{frames} frames of the test utterances, whose labels are there" in said.out
    score = scores(run)["test/accuracy"]
    # the same answers, counted here
    works("predict", "--run_dir", run, "--data.root", other)
    with open(run / "submission.csv", newline="") as file:
        answers = [row["Class"] for row in csv.DictReader(file)]
    true = [label for line in labels for label in line.split()[1:]]
    assert len(answers) == frames
    assert sum(a == b for a, b in zip(answers, true, strict=True)) / frames == pytest.approx(score, abs=1e-4)
    assert score > 0.3  # the commonest class: 0.27

    # what does not fit together
    assert_fails(tmp_path, "fit", "--config", root / "whole.yaml", "--data.root", other, "--run_dir", tmp_path / "no",
          says=["train_split.txt"])  # fmt: skip
    again = ["data", "prepare", "hw2_phoneme", other, "--source", recordings / "others", "--split", "test"]
    assert_fails(tmp_path, *again, says=["there already"])
    assert_fails(tmp_path, *again, "--phones", 61, says=["there already"])
    works(*again[:3], tmp_path / "fine", *again[4:], "--phones", 61)
    says = ["61 classes (iy, ih, ix", "trained on 39 classes"]
    assert_fails(tmp_path, "test", "--run_dir", run, "--data.root", tmp_path / "fine", says=says)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["prepare", "hw1_covid", "--split", "test"], 2, ["--split"]),
        (["prepare", "hw2_phoneme", "--split", "dev"], 2, ["--split", "train", "test"]),
        (["prepare", "hw2_phoneme", "--phones", "40"], 2, ["--phones", "39", "48", "61"]),
        (["prepare", "hw2_phoneme", "--source", "nowhere"], 1, ["nowhere", "no such folder, zip or tar"]),
        (["fetch", "hw2_phoneme"], 1, ["docs/hw2_phoneme.md", "their files belong into"]),
    ],
)
def test_a_mistake_in_leeml_data(tmp_path, args, code, says):
    assert_fails(tmp_path, "data", *args, says=says)
    assert answer("data", *args).code == code


@pytest.mark.parametrize(
    ("config", "flags", "says"),
    [
        ("window", ["--data.window", "4"], ["data.window is 4", "odd"]),
        ("window", ["--data.window", "null"], ["data.window", "WindowMLP", "a number of frames"]),
        ("whole", ["--data.window", "3"], ["data.window is 3", "TransformerFrames", "null"]),
        ("window", ["--data.split", "speaker"], ["speakers are not known", "data.split to utterance"]),
        (
            "window",
            ["--model.augment", "[modules.nets.spec_augment.SpecAugment]"],
            ["model.augment", "data.window null"],
        ),
    ],
)
def test_a_value_that_cannot_be(root, tmp_path, config, flags, says):
    line = ["fit", "--config", root / f"{config}.yaml", "--data.root", root, "--run_dir", tmp_path / "run", *flags]
    assert_fails(tmp_path, *line, says=says)


def test_bad_data_is_named_in_one_line(root, tmp_path):
    works("data", "sample", "hw2_phoneme", tmp_path)
    folder = tmp_path / "hw2_phoneme" / "sample"
    path = folder / "feat" / "train" / f"{(folder / 'train_split.txt').read_text().split()[3]}.pt"
    path.write_bytes(path.read_bytes()[:500])
    line = ["fit", "--config", root / "window.yaml", "--data.root", tmp_path, "--run_dir", tmp_path / "run"]
    assert_fails(tmp_path, *line, says=[str(path), "cannot be read as a tensor file; copy or unzip it again"])
    assert_fails(tmp_path, "data", "sample", "hw2_phoneme", tmp_path, says=["here already"])
