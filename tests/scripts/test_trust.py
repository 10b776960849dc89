"""A run that somebody else made: opening it runs none of their code, and writes nothing outside of its folder."""

import copy
import inspect
import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from conftest import answer, assert_fails, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer

import scripts.run.trusted as rules
from datamodules.errors import DataError
from modules.nets.mlp import MLP
from scripts.cli.parameter_types import parameters, plain, takes_none
from scripts.run.checkpoint import from_config
from scripts.run.folder import RunFolder
from scripts.run.trusted import known, trusted

EVIL = """\
import pathlib
pathlib.Path({sentinel!r}).touch()
from lightning.pytorch import Callback
from torch.optim import AdamW
from modules.hw1_covid import CovidRegressor
class Print(Callback): pass
class Mine(AdamW): pass
class Net(CovidRegressor): pass
def run(*args, **kwargs): pass
"""


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    """A file that appears when the module `evil`, which can be imported, is."""
    folder, path = tmp_path / "path", tmp_path / "sentinel"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(sentinel=str(path)))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield path
    sys.modules.pop("evil", None)


def changed(config, key, value):
    """The configuration with a value at a key; a last name in brackets, [a.b], holds dots of its own."""
    config = copy.deepcopy(config)
    *names, last = key.split("/")
    place = config
    for name in names:
        place = place.setdefault(name, {})
    place[last] = value
    return config


def evil(name="Net", /, **init_args):
    return {"class_path": f"evil.{name}", "init_args": init_args}


def lightning(name, /, **init_args):
    return {"class_path": f"lightning.pytorch.{name}", "init_args": init_args}


IN_MODEL_OR_DATA = [
    ("model", evil()),
    ("model", "evil.Net"),
    ("model", '{"class_path": "evil.Net"}'),
    ("model", '{"class\\u005fpath": "evil.Net"}'),
    ("model", "evil.yaml"),
    ("model/class_path", "evil.Net"),
    ("model/class_path", ["evil.Net"]),
    ("model/__path__", "evil.yaml"),
    ("model/imports", ["evil"]),
    ("model/dict_kwargs", {"callback": "evil.run"}),
    ("model/init_args.optimizer.class_path", "evil.Mine"),
    ("model.class_path", "evil.Net"),
    ("model.init_args.optimizer", "evil.Mine"),
    ("model/init_args/optimizer", evil("Mine", lr=0.1)),
    ("model/init_args/optimizer", "evil.Mine"),
    ("model/init_args/optimizer", "evil.run"),
    ("model/init_args/optimizer", "evil"),
    ("model/init_args/optimizer", "evil.yaml"),
    ("model/init_args/optimizer", "x" * 5000),
    ("model/init_args/optimizer", "a\0b"),
    ("model/init_args/optimizer", "class_path: evil.Mine"),
    ("model/init_args/optimizer/class_path", "evil.Mine"),
    ("model/init_args/optimizer/init_args/lr", evil("run")),
    ("model/init_args/optimizer/init_args/lr", "evil.run"),
    ("model/init_args/optimizer/init_args/lr", {"class_path": "torch.nn.Linear", "init_args": {"in_features": evil()}}),
    ("model/init_args/optimizer/dict_kwargs", {"x": evil("run")}),
    ("model/init_args/hidden", [evil("run")]),
    ("model/init_args/dropout", evil("run")),
    ("model/init_args/unknown", "evil.run"),
    ("model/init_args/unknown", [[[[{"a": evil()}]]]]),
    ("data", evil()),
    ("data", "evil.Net"),
    ("data/init_args/target", evil("run")),
    ("data/init_args/batch_size", "evil.run"),
    ("seed_everything", evil("run")),
    ("imports", ["evil"]),
    ("optimizer", evil("Mine")),
    ("optimizer.class_path", "evil.Mine"),
    ("lr_scheduler", evil("run")),
    ("config", "evil.yaml"),
    ("cfg", "evil.yaml"),
    ("__default_config__", "evil.yaml"),
    ("ckpt_path", "evil.ckpt"),
    ("weights_only", False),
    *(
        (place, {"class_path": name, "init_args": {"args": ["touch sentinel"], "command": "touch sentinel"}})
        for place in ("model", "model/init_args/optimizer", "data")
        for name in (
            "builtins.eval", "builtins.exec", "os.system", "posix.system", "subprocess.Popen", "subprocess.run",
            "functools.partial", "torch.load", "torch.hub.load", "torch.nn.modules.os.system", "torch.optim.evil.Mine",
            "modules.hw1_covid.torch.load", "modules.base.os.system", "modules.nets.evil.Net", "modules..evil.Net",
            "callbacks.files.write_text", "scripts.leeml.main", "jsonargparse.CLI", "importlib.import_module", "",
            "lightning.pytorch.loggers.MLFlowLogger", "torch.utils.cpp_extension.load",
        )
    ),
]  # fmt: skip
IN_TRAINER = [
    ("trainer", "evil.yaml"),
    ("trainer/callbacks", "x" * 5000),
    ("trainer/callbacks", [evil("Print")]),
    ("trainer/callbacks", evil("Print")),
    ("trainer/callbacks", "evil.Print"),
    ("trainer/callbacks", ["evil.Print"]),
    ("trainer/callbacks+", [evil("Print")]),
    ("trainer/callbacks+", "evil.Print"),
    ("trainer/callbacks", [lightning("callbacks.LambdaCallback", on_fit_start="evil.run")]),
    ("trainer/callbacks", [lightning("callbacks.LambdaCallback", on_fit_start=evil("run"))]),
    ("trainer/callbacks", [lightning("callbacks.EarlyStopping", monitor=evil("run"))]),
    ("trainer/callbacks", [lightning("callbacks.ThroughputMonitor", batch_size_fn="evil.run")]),
    ("trainer/logger", evil("run")),
    ("trainer/logger", [evil("run")]),
    ("trainer/logger", lightning("loggers.WandbLogger", experiment=evil("run"))),
    ("trainer/logger", lightning("loggers.WandbLogger", settings={"x_executable": "evil"})),
    ("trainer/logger", lightning("loggers.WandbLogger") | {"dict_kwargs": {"settings": {"base_url": "evil"}}}),
    ("trainer/logger", lightning("loggers.MLFlowLogger", tracking_uri="evil")),
    ("trainer/plugins", evil("run")),
    ("trainer/plugins", [evil("run")]),
    ("trainer/plugins", "evil.run"),
    ("trainer/profiler", evil("run")),
    ("trainer/profiler", "evil.run"),
    ("trainer/profiler", lightning("profilers.PyTorchProfiler") | {"dict_kwargs": {"on_trace_ready": "evil.run"}}),
    ("trainer/strategy", evil("run")),
    ("trainer/strategy", "evil.run"),
    ("trainer/strategy", lightning("strategies.DDPStrategy", ddp_comm_hook="evil.run")),
    ("trainer/strategy", lightning("strategies.FSDPStrategy", auto_wrap_policy="evil.run")),
    ("trainer/strategy", lightning("strategies.DeepSpeedStrategy", config="evil.json")),
    ("trainer/accelerator", evil("run")),
    ("trainer/accelerator", "evil.run"),
    ("trainer/max_time", evil("run")),
    ("trainer.callbacks", [evil("Print")]),
    ("checkpoint/class_path", "evil.run"),
    ("checkpoint/monitor", evil("run")),
    ("checkpoint", evil("run")),
]
OUTSIDE = [
    ("checkpoint/dirpath", "{out}"),
    ("checkpoint/dirpath", "beside"),
    ("checkpoint/filename", "../../best"),
    ("trainer/profiler", lightning("profilers.SimpleProfiler", dirpath="{out}", filename="x")),
    ("trainer/profiler", lightning("profilers.AdvancedProfiler", dirpath="profile", filename="x")),
    ("trainer/profiler", lightning("profilers.SimpleProfiler", filename="../../x")),
    ("trainer/profiler", lightning("profilers.PyTorchProfiler", filename="{out}/x")),
    ("trainer/logger", lightning("loggers.CSVLogger", save_dir="{out}")),
    ("trainer/logger", lightning("loggers.CSVLogger", save_dir="s3://bucket")),
    ("trainer/logger", [lightning("loggers.TensorBoardLogger", save_dir="logs")]),
    ("trainer/logger", lightning("loggers.CSVLogger", save_dir="", name="{out}")),
    ("trainer/logger", lightning("loggers.WandbLogger", dir="{out}")),
    ("trainer/callbacks", [lightning("callbacks.ModelCheckpoint", dirpath="{out}")]),
    ("trainer/callbacks", [lightning("callbacks.ModelCheckpoint", dirpath="~/x")]),
    ("trainer/callbacks", [lightning("callbacks.OnExceptionCheckpoint", dirpath="{out}")]),
    ("trainer/callbacks", [{"class_path": "callbacks.submission.Submission", "init_args": {"path": "{out}/x"}}]),
    ("trainer/default_root_dir", "{out}"),
    ("trainer/logger", lightning("loggers.TensorBoardLogger", save_dir="$HOME/evil")),
    ("trainer/logger", lightning("loggers.TensorBoardLogger", save_dir="{run}/${HOME}")),
    ("trainer/logger", lightning("loggers.TensorBoardLogger", save_dir="{run}", name="$HOME")),
    ("trainer/logger", lightning("loggers.TensorBoardLogger", save_dir="{run}", version="a/%HOME%")),
    ("trainer/logger", lightning("loggers.TensorBoardLogger", save_dir="{run}", sub_dir="$HOME")),
    ("trainer/logger", lightning("loggers.CSVLogger", save_dir="a\0b")),
    ("trainer/logger", lightning("loggers.CSVLogger", save_dir="~nosuchuser/x")),
    ("trainer/logger", lightning("loggers.CSVLogger", save_dir="", name="~nosuchuser/x")),
]
named = [(f"{key}={value}"[:70], key, value) for key, value in [*IN_MODEL_OR_DATA, *IN_TRAINER]]


def write(run, key, value):
    config = changed(yaml.safe_load((run / "config.yaml").read_text()), key, value)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    Path("evil.yaml").write_text("class_path: evil.Net\n")  # the parser takes the name of a file for its content


@pytest.mark.parametrize(("key", "value"), [n[1:] for n in named], ids=[n[0] for n in named])
def test_a_run_to_go_on_with_runs_no_code_of_others(run, tmp_path, sentinel, key, value):
    write(run, key, value)
    line = assert_fails(tmp_path, "fit", "--run_dir", run, "--resume", says=[str(run / "config.yaml")])
    assert key.split("/")[0].split(".")[0] in line
    assert not sentinel.exists()


@pytest.mark.parametrize(("key", "value"), OUTSIDE, ids=lambda value: str(value)[:80])
def test_a_run_to_go_on_with_writes_into_its_folder_alone(run, tmp_path, key, value):
    out = tmp_path / "out"
    write(run, key, yaml.safe_load(yaml.safe_dump(value).replace("{out}", str(out)).replace("{run}", str(run))))
    assert_fails(tmp_path, "fit", "--run_dir", run, "--resume", says=["config.yaml: ", key.split("/")[0], "folder"])


@pytest.mark.parametrize("name", ["log.txt", "metrics.csv", "samples.csv", "checkpoints", "figures", ".lock"])
def test_no_link_in_a_run_leads_its_files_elsewhere(run, sample, tmp_path, name):
    place, out = run / name, tmp_path / "out"
    if place.exists():
        place.rename(out)
    else:
        out.write_text("mine")
    place.symlink_to(out)
    resume = ["fit", "--run_dir", run, "--data.root", sample, "--resume", "--trainer.max_epochs", "3"]
    assert_fails(tmp_path, *resume, says=[f"{place}: a link to {out}", "outside of the run's folder"])


def test_a_link_within_a_run_is_followed(tmp_path):
    (tmp_path / "run" / "kept").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").symlink_to("kept")
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.free()
    assert folder.checkpoints.resolve() == (tmp_path / "run" / "kept").resolve()


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize(("key", "value"), [IN_MODEL_OR_DATA[0], IN_MODEL_OR_DATA[14], ("data", evil())])
def test_other_subcommands_and_checkpoints_run_no_code(run, tmp_path, sentinel, verb, key, value):
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    alone = tmp_path / "alone.ckpt"
    torch.save(checkpoint | {"config": changed(checkpoint["config"], key, value)}, alone)
    assert_fails(
        tmp_path, verb, "--ckpt_path", alone, says=[f"{alone}: {key.replace('/', '.')[:5]}", "evil.", "--trust"]
    )
    write(run, key, value)
    assert_fails(tmp_path, verb, "--run_dir", run, says=[str(run / "config.yaml"), "evil.", "--trust"])
    with pytest.raises(DataError, match=r"evil\."):
        from_config(alone, [], "model", "data")
    assert not sentinel.exists()


def test_a_model_is_asked_without_the_parts_of_its_training(run, sample, tmp_path, sentinel):
    write(run, "trainer/callbacks", [evil("Print"), lightning("callbacks.LambdaCallback", on_predict_start="evil.run")])
    write(run, "trainer/logger", evil("run"))
    write(run, "trainer/profiler", lightning("profilers.SimpleProfiler", dirpath=str(tmp_path / "out"), filename="x"))
    said = answer("predict", "--run_dir", run, "--data.root", sample)
    assert said.code == 0, said.err
    assert f"{run / 'config.yaml'}: trainer.callbacks names evil.Print; predict needs none of it" in said.err
    assert not sentinel.exists()
    assert not (tmp_path / "out").exists()


def test_own_classes_with_trust_and_when_typed(run, sample, tmp_path, sentinel):
    predict = ["predict", "--run_dir", run, "--data.root", sample]
    stored = (run / "config.yaml").read_text()
    write(run, "model/init_args/optimizer", evil("Mine", lr=0.1, weight_decay=0.1))
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {init_args: {optimizer: {class_path: evil.Mine, init_args: {lr: 0.1}}}}\n")
    said = answer(*predict, "--config", mine)
    assert said.code == 0, said.err
    assert "note" not in said.err
    assert sentinel.exists(), "the attack would not have worked"
    said = answer(*predict, "--trust")
    assert said.code == 0, said.err
    assert f"{run / 'config.yaml'}: model.optimizer names evil.Mine; --trust allows it" in said.err
    (run / "config.yaml").write_text(stored)
    write(run, "trainer/callbacks", [evil("Print")])
    said = answer("fit", "--run_dir", run, "--data.root", sample, "--resume", "--trust", "--trainer.max_epochs", "3")
    assert said.code == 0, said.err
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "trust" not in config, "it holds for one call"
    assert config["trainer"]["callbacks"][0]["class_path"] == "evil.Print"


def test_what_a_user_types_is_free(sample, experiment, tmp_path, sentinel):
    mine = tmp_path / "mine.yaml"
    mine.write_text(experiment.read_text().replace("callbacks:\n", "callbacks:\n    - class_path: evil.Print\n"))
    fit = [
        "fit",
        "--config",
        mine,
        "--data.root",
        sample,
        "--trainer.fast_dev_run",
        "true",
        "--run_dir",
        tmp_path / "r",
    ]
    said = answer(*fit, "--model.optimizer", "evil.Mine", "--model.optimizer.lr", "0.1")
    assert said.code == 0, said.err
    assert sentinel.exists()


SWEEP = """\
command: [leeml, fit, --config, {config}, "${{args}}"]
method: random
metric: {{name: val/mse, goal: minimize}}
parameters:
  model.dropout: {{min: 0.1, max: 0.2}}
"""
IN_FLAGS = [
    ["--model=evil.Net"],
    ["--model", "evil.Net", "--model", "CovidRegressor"],
    ["--model.class_path=evil.Net"],
    ["--model.optimizer", "evil.Mine"],
    ["--model.optimizer=evil.Mine", "--model.optimizer=AdamW"],
    ["--model.optimizer.class_path=evil.Mine"],
    ["--model.init_args.optimizer=evil.Mine"],
    ['--model.optimizer={"class_path": "evil.Mine"}'],
    ["--trainer.callbacks+=evil.Print"],
    ['--trainer.callbacks=[{"class_path": "evil.Print"}]'],
    ["--trainer.logger", "evil.run"],
    ["--config", "evil_config.yaml"],
    ["-c", "evil_config.yaml", "--config", "{config}"],
    ["-c=evil_config.yaml"],
    ['--config={"model": "evil.Net"}'],
    ["--cfg=evil_config.yaml"],
    ["--trust"],
    ["--run_dir=elsewhere"],
    ["--checkpoint.dirpath=/elsewhere"],
    ["--checkpoint.filename", "../../best"],
    ["evil.Net"],
]


@pytest.mark.parametrize("flags", IN_FLAGS, ids=" ".join)
@pytest.mark.parametrize("where", ["tune.json", "sweep.yaml"])
def test_a_search_of_somebody_else_runs_no_code(tmp_path, experiment, sentinel, flags, where):
    pytest.importorskip("optuna", reason="leeml tune needs Optuna")
    Path("evil_config.yaml").write_text("model: {class_path: evil.Net}\n")
    flags = [flag.replace("{config}", str(experiment)) for flag in flags]
    folder = tmp_path / "tune"
    folder.mkdir()
    sweep = yaml.safe_load(SWEEP.format(config=experiment))
    if where == "sweep.yaml":
        sweep["command"][-1:] = [*flags, "${args}"]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "tune.json").write_text(json.dumps({"flags": flags if where == "tune.json" else [], "seed": 0}))
    (folder / "study.db").touch()
    assert_fails(tmp_path, "tune", "--run_dir", folder, "--resume", says=[str(folder / "sweep.yaml")])
    assert not sentinel.exists()


@pytest.mark.parametrize("given", [{"value": "evil.Mine"}, {"values": ["AdamW", "evil.Mine"]}])
def test_values_of_somebody_elses_search_run_no_code(tmp_path, experiment, sentinel, given):
    pytest.importorskip("optuna", reason="leeml tune needs Optuna")
    folder = tmp_path / "tune"
    folder.mkdir()
    sweep = yaml.safe_load(SWEEP.format(config=experiment))
    sweep["parameters"]["model.optimizer"] = given
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "tune.json").write_text('{"flags": [], "seed": 0}')
    (folder / "study.db").touch()
    line = ("tune", "--run_dir", folder, "--resume")
    assert_fails(tmp_path, *line, says=[str(folder / "sweep.yaml"), "evil.Mine", "--trust"])
    assert not sentinel.exists()


HOSTILE = [
    "evil.Net",
    "evil.run",
    '{"class_path": "evil.Net"}',
    evil(),
    evil("run", x=evil()),
    [evil()],
    ["evil.run"],
]


def places(value, path=()):
    """All places in a tree where something can stand."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, part in parts:
        yield from places(part, (*path, key))
    if isinstance(value, dict):
        yield (*path, "new")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choose=st.data())
def test_wherever_it_stands(trained, tmp_path, sentinel, choose):
    """What is handed on holds the name of nothing hostile, but as text for a parameter that takes text alone."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    path = choose.draw(st.sampled_from(list(places(config))[1:]))
    value = choose.draw(st.sampled_from(HOSTILE))
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    verb = choose.draw(st.sampled_from(["fit", "predict"]))
    try:
        found = trusted(config, tmp_path / "config.yaml", verb, tmp_path, trust=False)
    except DataError:
        return
    parts = {path: value_at(found, path) for path in places(found)}
    left = [path for path, part in parts.items() if isinstance(part, str) and "evil" in part]
    assert len(left) <= 1
    for path in left:
        section, name = path[0], path[-1]
        cls = known(found[section]["class_path"]) if section in ("model", "data") else Trainer
        hint = parameters(cls if section != "checkpoint" else rules.BestCheckpoint).get(name)
        assert plain(hint), f"{path}: {hint}"
    assert "evil" not in sys.modules


def value_at(tree, path):
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else tree[key]
    return tree


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, True), (str | None, True), (list[tuple[int, float]], True), (dict[str, list[int]] | str | Path, True),
        (MLP, False), (Callback | None, False), (list[MLP] | str, False), (type, False), (object, False),
        (dict[str, MLP], False), (torch.Tensor | float, False), (Any, False),
    ],
)  # fmt: skip
def test_types_that_take_text_alone(hint, expected):
    assert plain(hint) is expected


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, False), (int | None, True), (Any, True), (Literal["a", None], True), (Literal["a"], False),
        (list[int | None], False), (list[int] | None, True), (MLP, False),
    ],
)  # fmt: skip
def test_types_that_take_null(hint, expected):
    assert takes_none(hint) is expected


def test_null_may_stand_where_it_is_the_default():
    paths = [
        *rules._by_short_name().values(),
        *(f"torchvision.transforms.v2.{n}" for n in rules._offered("torchvision.transforms.v2")),
    ]
    assert len(paths) > 250
    for path in paths:
        cls = known(path)
        for parameter in inspect.signature(cls.__init__).parameters.values():
            assert parameter.default is not None or takes_none(parameters(cls)[parameter.name]), path


def test_every_class_that_our_configs_name_is_known(trained):
    """As the parser writes them into a run's configuration."""
    project = Path(rules.__file__).parents[2]
    names = set()
    for path in project.glob("configs/**/*.yaml"):
        config = yaml.safe_load(path.read_text())
        names |= {
            part
            for place in places(config)
            if place and place[-1] == "class_path"
            for part in [value_at(config, place)]
        }
    assert len(names) > 25
    for name in names:
        assert known(name if "." in name else rules._by_short_name()[name]), name
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    assert trusted(stored, trained, "fit", trained, trust=False) == stored


def test_nothing_else_is_known():
    for name in ("torch.nn.Linear", "torch.nn.modules.linear.Linear", "callbacks.warmup.WarmupScheduler"):
        assert known(name)
    for name in ("torch.nn.functional.relu", "torch.optim.swa_utils.SWALR", "modules.base.HomeworkModule",
                 "modules.nets.mlp.nn.Linear", "callbacks.warmup.Callback", "callbacks.checkpoints.RunCheckpointIO",
                 "torch.optim.Linear", "torch.nn.modules.linear.Tensor", "", ".", "evil.Linear"):  # fmt: skip
        assert known(name) is None, name


# YAML


def bomb(levels=9):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(), "more than 100,000 values"),
        ("a: " + "[" * 5000 + "]" * 5000, "nest"),
        ("a: " + "{b: " * 5000 + "}" * 5000, "nest"),
        ("\n".join("  " * n + f"k{n}:" for n in range(200)), "50 levels"),
        ("a: &a [*a]", "inside itself"),
        ("a: " + "x" * 2**21, "a config has at most 1,048,576"),
        ("a: [" + "1," * 200_000 + "]", "more than 100,000 values"),
        ("model: !!python/object/apply:os.mkdir ['sentinel']", "not YAML"),
        ("model: !include evil.yaml", "not YAML"),
        ("a: *b", "not YAML"),
        ("a: 2024-13-45", "not YAML that can be read"),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("where", ["own config", "run"])
def test_yaml_that_explodes(run, tmp_path, text, says, where):
    path = run / "config.yaml" if where == "run" else tmp_path / "mine.yaml"
    path.write_text(text)
    opens = (
        ["predict", "--run_dir", run] if where == "run" else ["fit", "--config", path, "--run_dir", tmp_path / "new"]
    )
    assert_fails(tmp_path, *opens, says=[str(path), says])
    assert not Path("sentinel").exists()


def test_a_checkpoint_whose_configuration_is_odd(run, tmp_path):
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    endless: list = []
    endless.append(endless)
    for config in (endless, {"model": endless}, {"model": {"class_path": torch.zeros(3)}}, None, {"data": {}}, {3: 4}):
        torch.save(checkpoint | {"config": config}, tmp_path / "odd.ckpt")
        before = tree(run)
        assert_fails(tmp_path, "predict", "--ckpt_path", tmp_path / "odd.ckpt", says=[])
        assert tree(run) == before
