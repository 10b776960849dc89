"""What the tests of the command line share: a small generated set, an experiment on it, one trained run."""

import contextlib
import io
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from callbacks import figures
from datamodules import generated
from datamodules.generated import write_covid, write_translation
from scripts.leeml import main
from scripts.studies.lab import machine
from scripts.studies.lab.page import page
from scripts.studies.lab.records import save
from scripts.studies.lab.statements import judge

OLD = Path(__file__).parent.parent / "old_runs"
WRITERS = {
    "hw1_covid": generated.write_covid,
    "hw2_phoneme": generated.write_phonemes,
    "hw3_food": generated.write_food,
    "hw4_speaker": generated.write_speakers,
    "hw5_translation": generated.write_translation,
}
EXPERIMENT = """\
model:
  class_path: CovidRegressor
  init_args:
    optimizer:
      class_path: AdamW
      init_args: {lr: 0.003, weight_decay: 0.1}
    hidden: [16]
    dropout: 0.1
data:
  class_path: CovidData
  init_args:
    target: change # what changes since yesterday
    batch_size: 64
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  callbacks:
    - class_path: WarmupScheduler
      init_args: {warmup: 2}
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def answer(*args):
    """What the command says, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in args])
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
    return Answer(code, out.getvalue(), err.getvalue())


def works(*args):
    said = answer(*args)
    assert said.code == 0, said.err
    return said


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Root of a generated set: 246 training rows and the first 60 of the test file."""
    root = tmp_path_factory.mktemp("sample")
    folder = root / "hw1_covid" / "sample"
    write_covid(folder)
    for name, kept in (("covid.train.csv", slice(1, None, 11)), ("covid.test.csv", slice(1, 61))):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join([lines[0], *lines[kept]]))
    return root


@pytest.fixture(scope="session")
def covid(tmp_path_factory):
    """Root of HW1's generated set, whole."""
    root = tmp_path_factory.mktemp("covid")
    write_covid(root / "hw1_covid" / "sample")
    return root


@pytest.fixture(scope="session")
def few_pairs(tmp_path_factory):
    """Root with 160 generated pairs of sentences."""
    root = tmp_path_factory.mktemp("pairs")
    for path in write_translation(root / "hw5_translation" / "sample"):
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:160]), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def old_data(tmp_path_factory):
    """Root of the generated data that the old runs were trained on."""
    root = tmp_path_factory.mktemp("old_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "FOOD_IMAGES", {"training": 4, "validation": 1, "test": 1, "unlabeled": 0})
        patch.setattr(generated, "SPOKEN", {"train": 12, "test": 3})
        patch.setattr(generated, "HEARD", {"train": 4, "test": 1})
        patch.setattr(generated, "PAIRS", {"raw": 200, "test": 20})
        for homework, write in WRITERS.items():
            write(root / homework / "sample")
    return root


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, sample, experiment):
    """Folder of a run of two epochs; not to be written to (see `run`)."""
    path = tmp_path_factory.mktemp("trained") / "run"
    works("fit", "--config", experiment, "--data.root", sample, "--run_dir", path)
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def data(sample, tmp_path):
    """A copy of the data's root, to be damaged."""
    return Path(shutil.copytree(sample, tmp_path / "data"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Tests stand in an empty folder, see no data by chance, and their runs go there."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("LEEML_DATA", str(tmp_path / "no_data"))
    monkeypatch.delenv("LEEML_DEBUG", raising=False)
    monkeypatch.setattr("scripts.run.folder.PROJECT", place)


@pytest.fixture(autouse=True, scope="module")
def drawing():
    """How the callback knows whether figures are wanted; drawing takes long, and most tests do without."""
    with pytest.MonkeyPatch.context() as patch:
        wanted = figures._wanted
        patch.setattr(figures, "_wanted", lambda trainer: False)
        yield wanted


@pytest.fixture
def pictures(drawing, monkeypatch):
    """For a test that looks at the figures."""
    monkeypatch.setattr(figures, "_wanted", drawing)


def tree(folder):
    """All that lies in a folder, and its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def assert_fails(where, *args, says=()):
    """The command ends with one line of error, and `where` holds what it held before.

    Args:
        where: Folder of all the test's files.
        args: The command.
        says: What the line must hold.
    """
    before = tree(where)
    said = answer(*args)
    assert said.code in (1, 2), said
    lines = [line for line in said.err.splitlines() if line.startswith("leeml: error:")]
    assert len(lines) == 1, said.err
    assert said.err.endswith(lines[0] + "\n")
    assert "Traceback" not in said.err + said.out
    assert "Union subtypes" not in lines[0], "jsonargparse's own words"
    assert len(lines[0]) < 2000
    for part in says:
        assert part in lines[0], lines[0]
    after = tree(where)
    assert after.keys() - before.keys() == set(), "left behind"
    assert before == after, "lost or changed"
    return lines[0]


def check_study(name, tiny, root, timed=False):
    """Measurements of two seeds, of which verdicts, figure, table, text, record and page can be made.

    Args:
        name: Of the study.
        tiny: Settings by name, in place of those of quick.
        root: Of the data.
        timed: Times are among what it measures; all else is the same whenever the seed is.
    """
    study = machine.load(name)
    settings = replace(study.quick, **tiny)

    def measured(seed):
        with machine.seeded(seed):
            return json.loads(json.dumps(study.run(settings, seed, root)))

    found = [measured(seed) for seed in range(2)]
    assert timed or measured(0) == found[0], "a seed tells all"
    verdicts = [judge(statement, found, (2,)) for statement in study.statements]
    outcome = machine.Outcome(name, study, True, found, verdicts, 1.0)
    columns, rows = study.table(found)
    assert rows
    assert all(len(row) == len(columns) for row in rows)
    assert all(verdict.says.english in machine.describe(outcome) for verdict in verdicts)
    with tempfile.TemporaryDirectory() as folder:
        assert save(outcome, Path(folder)).read_bytes()[:4] == b"\x89PNG"
        assert f'<section id="{name}"' in page(Path(folder))
    return found
