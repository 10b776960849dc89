"""HW4 from the command line: recordings prepared, fit, test, the harder test, predict, and bad data in one line."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import assert_fails, works

from datamodules.files.places import PROJECT

pytestmark = pytest.mark.slow

EXPERIMENT = """\
model:
  class_path: SpeakerClassifier
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.006}}
    net: {class_path: modules.nets.frame_encoders.TransformerFrames, init_args: {d_model: 24, d_ff: 32}}
    pooling: statistics
    head: {class_path: modules.nets.margin.MarginSoftmax, init_args: {scale: 15.0, margin: 0.1}}
    normalise: false
data:
  class_path: SpeakerData
  init_args:
    folds: 4
    segment: 64
    batch_size: 16
trainer:
  max_steps: 180
  callbacks:
    - {class_path: WarmupScheduler, init_args: {warmup: 0.1}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    works("data", "sample", "hw4_speaker", root)
    (root / "speaker.yaml").write_text(EXPERIMENT)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "speaker"
    works("fit", "--config", root / "speaker.yaml", "--data.root", root, "--run_dir", run)
    return run


def lines(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def scores(run):
    return json.loads((run / "scores.json").read_text())


def test_fit_test_and_predict(run, root, tmp_path, pictures):
    assert scores(run)["best val/accuracy"] > 0.15  # chance: 1 of 16
    said = works("test", "--run_dir", run)
    names = {path.stem for path in (run / "figures").glob("*.png")}
    assert names >= {"test_attention", "test_embeddings", "test_most_confused"}
    assert "held-out utterances (whole;" in said.out
    found = scores(run)
    assert found["test/accuracy"] == pytest.approx(found["best val/accuracy"], abs=1e-4)
    assert found["test/top5"] >= found["test/accuracy"]
    assert 0 < found["test/equal_error_rate"] < 0.5
    # on another machine: the checkpoint, and the test part alone
    alone = tmp_path / "alone" / "hw4_speaker"
    shutil.copytree(root / "hw4_speaker" / "sample", alone)
    (alone / "metadata.json").unlink(), (alone / "mapping.json").unlink()
    best = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt")
    works("predict", "--run_dir", run)
    works("predict", "--ckpt_path", best, "--data.root", alone.parent, "--output", tmp_path / "alone.csv")
    table = lines(run / "submission.csv")
    assert table == lines(tmp_path / "alone.csv")
    assert table[0] == ["Id", "Category"]
    listed = json.loads((alone / "testdata.json").read_text())["utterances"]
    assert [row[0] for row in table[1:]] == [entry["feature_path"] for entry in listed]
    assert {row[1] for row in table[1:]} <= {f"id{10001 + v}" for v in range(16)}


def test_the_harder_setting_says_so_and_is_repeatable(run):
    works("test", "--run_dir", run)
    whole = scores(run)["test/loss"]
    hard = ["test", "--run_dir", run, "--data.judge_frames", 100, "--data.judge_snr", 5]
    assert "100 frames each, noise at 5 dB" in works(*hard).out
    first = scores(run)
    assert first["test/loss"] != pytest.approx(whole, rel=1e-3)
    works(*hard)
    assert scores(run)["test/loss"] == first["test/loss"]


@pytest.mark.parametrize("level", ["simple", "medium", "strong", "boss"])
def test_the_levels_start(level, root, tmp_path):
    config = PROJECT / "configs" / "hw4_speaker" / f"{level}.yaml"
    line = ["--config", config, "--data.root", root, "--run_dir", tmp_path / "run", "--data.segment", 20]
    works("fit", *line, "--trainer.max_steps", 1, "--trainer.val_check_interval", 1)
    assert "best val/accuracy" in scores(tmp_path / "run")


def test_another_fold_than_the_runs_is_refused(run, tmp_path):
    assert_fails(tmp_path, "test", "--run_dir", run, "--data.fold", 1, says=["are held out here than in the run"])


def record(path, pitch, seed, rate=16000):
    """A second and more of a voice at a pitch of its own."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(rate * rng.uniform(1.0, 1.6))) / rate
    sound = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 20)) * np.abs(np.sin(5 * t))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * sound + 0.005 * rng.standard_normal(len(t)), rate)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    place = tmp_path_factory.mktemp("recordings")
    for speaker, pitch in {"anna": 220, "bert": 110, "陳": 160}.items():
        for n in range(6):
            record(place / "train" / speaker / f"{n}.flac", pitch, n)
        record(place / "test" / speaker / "t.wav", pitch, 99)
        record(place / "unknown" / f"{speaker}.flac", pitch, 98)
    return place


def test_ones_own_recordings(recordings, root, tmp_path):
    here, labelled = tmp_path / "here", tmp_path / "labelled"
    works("data", "prepare", "hw4_speaker", here, "--source", recordings / "train")
    works("data", "prepare", "hw4_speaker", here, "--source", recordings / "unknown", "--split", "test")
    works("data", "prepare", "hw4_speaker", labelled, "--source", recordings / "test", "--split", "test")
    run = tmp_path / "run"
    line = ["--config", root / "speaker.yaml", "--data.root", here, "--run_dir", run, "--data.batch_size", 6]
    works("fit", *line, "--trainer.max_steps", 50)
    assert "3 test utterances whose speakers are known (whole)" in works(
        "test", "--run_dir", run, "--data.root", labelled
    ).out  # fmt: skip
    assert scores(run)["test/accuracy"] == 1.0
    works("predict", "--run_dir", run)
    listed = json.loads((here / "hw4_speaker" / "prepared" / "testdata.json").read_text())["utterances"]
    wanted = [[entry["source"], entry["source"].split(".")[0]] for entry in listed]
    assert lines(run / "submission.csv") == [["Id", "Category"], *wanted]


# bad data


def damage_missing(folder, first):
    (folder / first).unlink()
    return [first, "missing"]


def damage_bands(folder, first):
    torch.save(torch.zeros(50, 39), folder / first)
    return [first, "39"]


def damage_nan(folder, first):
    x = torch.load(folder / first)
    x[3, 7] = torch.nan
    torch.save(x, folder / first)
    return [first]


def damage_empty(folder, first):
    torch.save(torch.zeros(0, 40), folder / first)
    return [first]


def damage_length(folder, first):
    torch.save(torch.zeros(7, 40), folder / first)
    return [first, "7 frames", "mel_len"]


def damage_mapping(folder, first):
    mapping = json.loads((folder / "mapping.json").read_text())
    del mapping["speaker2id"]["id10003"]
    (folder / "mapping.json").write_text(json.dumps(mapping))
    return ["mapping.json", "id10003"]


def damage_lone(folder, first):
    found = json.loads((folder / "metadata.json").read_text())
    found["speakers"]["id10003"] = found["speakers"]["id10003"][:1]
    (folder / "metadata.json").write_text(json.dumps(found))
    return ["too few utterances of id10003 (1)"]


@pytest.mark.parametrize(
    "damage",
    [damage_missing, damage_bands, damage_nan, damage_empty, damage_length, damage_mapping, damage_lone],
)
def test_bad_data_is_named_in_one_line(damage, root, tmp_path):
    folder = tmp_path / "data" / "hw4_speaker"
    shutil.copytree(root / "hw4_speaker" / "sample", folder)
    first = json.loads((folder / "metadata.json").read_text())["speakers"]["id10001"][0]["feature_path"]
    says = damage(folder, first)
    line = ["fit", "--config", root / "speaker.yaml", "--data.root", tmp_path / "data", "--run_dir", tmp_path / "run"]
    assert_fails(tmp_path, *line, says=says)


@pytest.mark.parametrize("damage", ["broken", "silent"])
def test_bad_recordings_are_named_in_one_line(damage, recordings, tmp_path):
    shutil.copytree(recordings / "train", tmp_path / "sounds")
    bad = tmp_path / "sounds" / "bert" / "3.flac"
    if damage == "broken":
        bad.write_bytes(bad.read_bytes()[:300])
    else:
        soundfile.write(bad, np.zeros(16000), 16000)
    (tmp_path / "here" / "hw4_speaker" / "prepared").mkdir(parents=True)
    line = ["data", "prepare", "hw4_speaker", tmp_path / "here", "--source", tmp_path / "sounds"]
    assert_fails(tmp_path, *line, says=["3.flac"])
