"""notebooks/: what write.py writes, and each of them run cell by cell on a folder like Kaggle's, which is only read."""

import json
import sys
import types
from pathlib import Path

import nbformat
import pytest

from datamodules import generated
from scripts.cli.homeworks import homeworks

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
WRITERS = {
    "hw1_covid": generated.write_covid,
    "hw2_phoneme": generated.write_phonemes,
    "hw3_food": generated.write_food,
    "hw4_speaker": generated.write_speakers,
    "hw5_translation": generated.write_translation,
}
SHORT = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1]


def test_the_notebooks_are_what_the_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    import write

    assert set(write.HOMEWORKS) == set(homeworks()) == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    for name in write.HOMEWORKS:
        text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert text == write.text_of(name), "run make notebooks"
        nbformat.validate(json.loads(text))


def run_cells(name, inputs):
    """Execute the code of a notebook with its inputs there and a short training; its names, and files that it shows."""
    names, shown = {}, []
    display = types.ModuleType("IPython.display")
    display.Image, display.display = lambda filename: filename, shown.append
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace('"/kaggle/input"', repr(str(inputs)))
            code = compile(code.replace("FLAGS = []", f"FLAGS = {SHORT!r}"), name, "exec")
            with pytest.MonkeyPatch.context() as patch:
                if "IPython" in code.co_names or "IPython.display" in code.co_names:  # Jupyter is not needed
                    patch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
                    patch.setitem(sys.modules, "IPython.display", display)
                exec(code, names)
    return names, shown


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_notebook_finds_its_data_trains_and_predicts(name, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "FOOD_IMAGES", {"training": 4, "validation": 1, "test": 1, "unlabeled": 0})
    monkeypatch.setattr(generated, "SPOKEN", {"train": 12, "test": 3})
    monkeypatch.setattr(generated, "HEARD", {"train": 4, "test": 1})
    monkeypatch.setattr(generated, "PAIRS", {"raw": 300, "test": 10})
    inputs = tmp_path / "input"
    WRITERS[name](inputs / "competitions" / "some-name")
    (inputs / "other-data").mkdir()
    before = {path: path.stat().st_mtime_ns for path in inputs.rglob("*")}
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    if name != "hw1_covid":  # drawing takes long, and is the same cell in all of them
        monkeypatch.setattr("callbacks.figures._wanted", lambda trainer: False)

    names, shown = run_cells(name, inputs)
    assert names["DATA"].is_relative_to(inputs)
    assert list(names["RUN"].glob("submission.*"))
    assert names["RUN"].is_relative_to(work)
    assert shown == sorted(str(path) for path in (names["RUN"] / "figures").rglob("*.png"))
    assert len(shown) > 3 or name != "hw1_covid"
    assert {path: path.stat().st_mtime_ns for path in inputs.rglob("*")} == before


@pytest.mark.slow
def test_without_data_a_generated_set_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, _ = run_cells("hw1_covid", tmp_path / "nothing")
    assert names["DATA"] == tmp_path / "data/hw1_covid/sample"
    assert (names["RUN"] / "scores.json").is_file()
