import csv
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import wandb
import yaml
from jsonargparse import Namespace
from wandb_files import artifacts_of, config_of, history_of, read_part, read_run, without_account

from callbacks.wandb_record import has_key
from datamodules.files.places import PROJECT
from datamodules.generated import write_covid
from scripts.leeml import main
from scripts.run.folder import RunFolder
from scripts.run.wandb_run import settle_wandb
from scripts.train import run_cli

PRESETS = {p.stem: p for p in sorted((PROJECT / "configs/presets").glob("*.yaml"))}
CONFIGS = sorted((PROJECT / "configs/hw1_covid").glob("*.yaml"))
MEDIUM = ["--config", "configs/hw1_covid/medium.yaml"]
SECRET = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LightningCLI's args parameter",  # in-process
    "ignore:.*isinstance.treespec, LeafSpec",  # Lightning's own
    "ignore:.*Experiment logs directory",
    "ignore:.*smaller than the logging interval",
)


def preset(*names: str) -> list[str]:
    return [part for name in names for part in ("--config", str(PRESETS[name]))]


def fit(*args: str) -> int:
    """The command in-process; it ends its W&B run, and wandb's service, which does the writing, is waited for here."""
    code = main(["fit", *args])
    assert wandb.run is None
    wandb.teardown()
    return code


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with generated data."""
    root = tmp_path_factory.mktemp("data")
    write_covid(root / "hw1_covid" / "sample")
    return root


@pytest.fixture(scope="module")
def offline(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `run` of a finished run with the preset, between what else the command could have written to."""
    base = tmp_path_factory.mktemp("offline")
    for folder in ("here", "home"):
        (base / folder).mkdir()
    args = [*MEDIUM, *preset("wandb"), "--data.root", str(data), "--run_dir", str(base / "run")]
    args += ["--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "4"]
    with mock.patch.dict(os.environ, without_account(base / "home"), clear=True), chdir(base / "here"):
        assert fit(*args, "--model.init_args.optimizer.init_args.lr", "0.0123") == 0
    return base / "run"


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """In-process, the environment of somebody without an account; put back afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    with mock.patch.dict(os.environ, without_account(home), clear=True):
        yield home


def test_offline_run_is_named(offline: Path) -> None:
    (run,) = [r.run for r in read_run(offline) if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name) == ("leeml", "hw1_covid", "run")


def test_offline_run_ends_well(offline: Path) -> None:
    (exit_code,) = [r.exit.exit_code for r in read_run(offline) if r.WhichOneof("record_type") == "exit"]
    assert exit_code == 0
    assert "kept offline; upload it with: wandb sync " in (offline / "log.txt").read_text()


def test_resolved_config_arrives(offline: Path) -> None:
    found = config_of(read_run(offline))
    assert found["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0123
    assert found["trainer"]["max_epochs"] == 3
    written = yaml.safe_load((offline / "config.yaml").read_text())
    assert {key: found[key] for key in written} == written


def test_metrics_arrive(offline: Path) -> None:
    with open(offline / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    local = {(k, int(r["step"])): float(v) for r in rows for k, v in r.items() if v and k not in ("step", "epoch")}
    names = {name for name, _ in local}
    assert names >= {"val/mse", "train/loss"}
    history = history_of(read_run(offline))
    assert {(k, row["trainer/global_step"]): v for row in history for k, v in row.items() if k in names} == local


def test_figures_arrive(offline: Path) -> None:
    local = {path.stem: path.read_bytes() for path in (offline / "figures").glob("*.png")}
    assert set(local) == {"loss", "learning_rate", "predicted_against_true"}
    logged = {k.split("/")[0]: v for row in history_of(read_run(offline)) for k, v in row.items() if "filenames" in k}
    (files,) = offline.glob("wandb/offline-run-*/files")
    assert {name: (files / path).read_bytes() for name, (path,) in logged.items()} == local


def test_prediction_table_arrives(offline: Path) -> None:
    records = read_run(offline)
    (path,) = [row["held_out/path"] for row in history_of(records) if "held_out/path" in row]
    (file,) = offline.glob(f"wandb/offline-run-*/files/{path}")
    table = json.loads(file.read_text())
    assert table["columns"] == ["true", "predicted"]
    errors = [(true - predicted) ** 2 for true, predicted in table["data"]]
    last = [row["val/mse"] for row in history_of(records) if "val/mse" in row][-1]
    assert len(errors) > 500
    assert sum(errors) / len(errors) == pytest.approx(last, rel=1e-5)
    assert artifacts_of(records, "run_table")


def test_checkpoint_artifact_arrives(offline: Path) -> None:
    records = read_run(offline)
    (model,) = artifacts_of(records, "model")
    assert "best" in model.aliases
    score = min(row["val/mse"] for row in history_of(records) if "val/mse" in row)
    assert json.loads(model.metadata) == {"monitor": "val/mse", "score": score}
    (entry,) = model.manifest.contents
    assert entry.path == "best.ckpt"
    assert Path(entry.local_path).read_bytes() == (offline / "checkpoints" / "best.ckpt").read_bytes()


def test_nothing_outside_the_run_folder(offline: Path, data: Path) -> None:
    assert [p for p in offline.parent.rglob("*") if p.is_file() and not p.is_relative_to(offline)] == []
    assert {p.name for p in data.rglob("*.*")} == {"covid.train.csv", "covid.test.csv"}


def run_records(folder: Path) -> list[Any]:
    """What each part of the W&B run in a folder says of itself, in the order in which they were written."""
    parts = sorted(folder.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    return [next(r.run for r in read_part(part) if r.WhichOneof("record_type") == "run") for part in parts]


@pytest.mark.usefixtures("nobody")
def test_resume_and_test_belong_to_one_wandb_run(offline: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(offline, moved)
    flags = ["--wandb.tags", "[a, b]", "--wandb.notes", "longer"]
    assert fit("--run_dir", str(moved), "--resume", "--trainer.max_epochs", "4", *flags) == 0
    assert main(["test", "--run_dir", str(moved)]) == 0
    wandb.teardown()
    first, resumed, tested = run_records(moved)
    assert first.run_id == resumed.run_id == tested.run_id
    assert (list(resumed.tags), resumed.notes) == (["a", "b"], "longer")
    last = sorted(moved.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)[-1]
    summary = {u.key: u.value_json for r in read_part(last) for u in r.summary.update}
    assert float(summary["test/mse"]) == pytest.approx(json.loads((moved / "scores.json").read_text())["test/mse"])


@pytest.mark.usefixtures("nobody")
def test_resumed_run_writes_where_it_lies_now(offline: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(offline, moved, ignore=shutil.ignore_patterns("wandb"))
    before = sorted(offline.rglob("*"))
    assert fit("--run_dir", str(moved), "--resume", "--trainer.max_epochs", "4") == 0
    assert sorted(offline.rglob("*")) == before
    records = read_run(moved)
    assert [row["epoch"] for row in history_of(records) if "val/mse" in row] == [3]
    (model,) = artifacts_of(records, "model")
    (entry,) = model.manifest.contents
    assert Path(entry.local_path).read_bytes() == (moved / "checkpoints" / "best.ckpt").read_bytes()


def test_key_is_written_nowhere(data: Path, tmp_path: Path, nobody: Path) -> None:
    os.environ |= {"WANDB_API_KEY": SECRET, "WANDB_MODE": "offline", "WANDB_PROJECT": "mine", "NETRC": "elsewhere"}
    args = [*MEDIUM, *preset("wandb", "debug"), "--data.root", str(data), "--run_dir", str(tmp_path / "run")]
    assert fit(*args) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert next(iter(tmp_path.glob("run/wandb/offline-run-*/logs/debug.log"))).is_file()
    records = read_run(tmp_path / "run")
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert run.project == "mine"
    assert not artifacts_of(records, "model")  # debug keeps no best one
    assert not list(tmp_path.rglob("best*.ckpt"))
    assert [row["epoch"] for row in history_of(records) if "val/mse" in row] == [1]


@pytest.mark.usefixtures("nobody")
def test_failed_run_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    write_covid(folder)
    (folder / "covid.train.csv").write_text("id,tested_positive\n0,much\n")
    args = [*MEDIUM, *preset("wandb"), "--data.dir", str(folder), "--run_dir", str(tmp_path / "run")]
    assert fit(*args) == 1
    assert "leeml: error: " in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nobody")
def test_online_without_key_never_prompts(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.environ["WANDB_MODE"] = "online"
    args = [*MEDIUM, *preset("wandb"), "--data.root", str(data), "--run_dir", str(tmp_path / "run")]
    assert fit(*args) == 1
    assert "wandb login" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "netrc", "found"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": ""}, None, False),
        ({"WANDB_API_KEY": SECRET}, None, True),
        ({}, f"machine api.wandb.ai login user password {SECRET}\n", True),
        ({}, f"machine example.org login user password {SECRET}\n", False),
        ({"WANDB_BASE_URL": "http://localhost:8080"}, f"machine localhost:8080 login u password {SECRET}\n", True),
        ({"WANDB_BASE_URL": "http://localhost:8080"}, f"machine api.wandb.ai login u password {SECRET}\n", False),
        ({}, "machine", False),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_has_key(nobody: Path, variables: dict[str, str], netrc: str | None, found: bool, named: bool) -> None:
    os.environ |= variables
    if not named:
        del os.environ["NETRC"]  # then the one at home counts
    if netrc is not None:
        (nobody / ".netrc").write_text(netrc)
        (nobody / ".netrc").chmod(0o600)
    assert has_key() is found


def wandb_logger(**given: str) -> Namespace:
    init = Namespace({"save_dir": ".", "project": None, "name": None, "group": None} | given)
    return Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=init)


@pytest.mark.usefixtures("nobody")
def test_what_the_config_says_is_kept(tmp_path: Path) -> None:
    given = {"save_dir": str(tmp_path), "project": "p", "name": "n", "group": "g"}
    logger = wandb_logger(**given)
    settle_wandb([logger], RunFolder(tmp_path / "run"), "hw1_covid")
    assert logger.init_args.as_dict() == {**given, "id": logger.init_args.id}


@pytest.mark.usefixtures("nobody")
def test_mode_the_user_chose_is_kept(tmp_path: Path) -> None:
    os.environ["WANDB_MODE"] = "disabled"
    settle_wandb(wandb_logger(), RunFolder(tmp_path / "run"), "hw1_covid")
    assert os.environ["WANDB_MODE"] == "disabled"


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("loggers", [None, True, False, [], Namespace(class_path="x.CSVLogger", init_args=Namespace())])
def test_no_wandb_logger_no_question(tmp_path: Path, loggers: Any) -> None:
    settle_wandb(loggers, RunFolder(tmp_path / "run"), "hw1_covid")
    assert not [name for name in os.environ if name.startswith("WANDB")]


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        run_cli(["fit", *args, "--print_config"])
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_presets_add_to_every_config(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = printed(["--config", str(config)], capsys)
    for path in PRESETS.values():
        own = yaml.safe_load(path.read_text())["trainer"]
        both = printed(["--config", str(config), "--config", str(path)], capsys)
        own_callbacks = [c["class_path"] for c in own.pop("callbacks+", [])]
        own_loggers = [c["class_path"] for c in own.pop("logger+", [])]
        kept = alone["trainer"]["callbacks"] or []
        added = (both["trainer"]["callbacks"] or [])[len(kept) :]
        assert (both["trainer"]["callbacks"] or [])[: len(kept)] == kept, path.name
        assert [c["class_path"].split(".")[-1] for c in added] == own_callbacks
        assert [c["class_path"].split(".")[-1] for c in both["trainer"]["logger"] or []] == own_loggers
        assert both["trainer"].items() >= own.items()
        assert (both["model"], both["data"]) == (alone["model"], alone["data"])


def test_presets_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed([*MEDIUM, *preset("wandb", "gpu")], capsys)
    names = [c["class_path"].split(".")[-1] for c in found["trainer"]["callbacks"]]
    assert names[-2:] == ["WandbRecord", "Compiled"]
    assert "WarmupScheduler" in names


def test_cuda_graphs_are_a_flag_on_top_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed([*MEDIUM, *preset("gpu"), "--trainer.callbacks.mode", "reduce-overhead"], capsys)
    assert found["trainer"]["callbacks"][-1]["init_args"] == {"mode": "reduce-overhead"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
@pytest.mark.usefixtures("nobody")
def test_gpu_preset_without_gpu(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = [*MEDIUM, *preset("gpu"), "--data.root", str(data), "--run_dir", str(tmp_path / "run")]
    assert fit(*args) == 1
    err = capfd.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("leeml: error: ")]
    assert "trainer.accelerator is gpu" in line
    assert "--trainer.accelerator cpu" in line
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nobody")
def test_tensorboard_takes_the_figures(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = [*MEDIUM, *preset("debug"), "--data.root", str(data), "--run_dir", str(tmp_path / "run")]
    logger = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(tmp_path / "board")]
    assert fit(*args, *logger) == 0
    (events,) = (tmp_path / "board").rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events))
    board.Reload()
    assert set(board.Tags()["images"]) == {p.stem for p in (tmp_path / "run" / "figures").glob("*.png")}
    image = board.Images("predicted_against_true")[0]
    assert image.width * image.height > 10_000
    assert "val/mse" in board.Tags()["scalars"]
