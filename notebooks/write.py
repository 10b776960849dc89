"""Writes one notebook a homework, for Kaggle and Colab: `make notebooks`. Edit this file, not the notebooks."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOMEWORKS = {
    "hw1_covid": ("HW1: tomorrow's share of positive COVID tests", "ml2022spring-hw1"),
    "hw2_phoneme": ("HW2: the phone of every frame", "ml2022spring-hw2"),
    "hw3_food": ("HW3: the kind of food in a photo", "ml2022spring-hw3b"),
    "hw4_speaker": ("HW4: who speaks", "ml2022spring-hw4"),
    "hw5_translation": ("HW5: English to Chinese", "your own data set with the course's files"),
}
INTRODUCTION = """\
# {title}

Runs on Kaggle, on Colab and in a clone of the project. On Kaggle, add the data of {competition} (Add Input) and turn on
the internet; on Colab, mount your drive and put the files into `MyDrive/leeml`. Without data, a small generated set is
made: its scores mean nothing.

What each level of the course adds: `docs/{name}.md`; all commands: `docs/commands.md`."""
SETUP = """\
import subprocess
import sys
from pathlib import Path

ADDRESS = "ADDRESS_OF_THIS_REPOSITORY"
WORK = Path("/kaggle/working") if Path("/kaggle/working").is_dir() else Path.cwd()  # where one may write
try:
    import scripts.leeml
except ModuleNotFoundError:
    subprocess.run(["git", "clone", "-q", "--depth", "1", ADDRESS, str(WORK / "leeml")], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", str(WORK / "leeml")], check=True)
    sys.path.insert(0, str(WORK / "leeml"))
    import scripts.leeml


def leeml(*words):
    \"\"\"A subcommand, as on the command line.\"\"\"
    if scripts.leeml.main([str(word) for word in words]):
        raise RuntimeError("leeml could not do it; the line above says why")"""
DATA = """\
from scripts.cli.homeworks import data_class

HOMEWORK = "{name}"
INPUTS = [Path("/kaggle/input"), Path("/content/drive/MyDrive/leeml")]  # they are only read
places = [place for root in INPUTS for place in [root, *sorted(root.rglob("*"))] if place.is_dir()]
DATA = next((place for place in places if data_class(HOMEWORK).has_files(place)), None)
if DATA is None:
    leeml("data", "sample", HOMEWORK, WORK / "data", "--if_empty")
    DATA = WORK / "data" / HOMEWORK / "sample"
print(DATA)"""
FIT = """\
from datamodules.files.places import PROJECT

LEVEL = "simple"  # or medium, strong, boss
FLAGS = []  # such as ["--trainer.max_epochs", 5], or ["--config", PROJECT / "configs/presets/gpu.yaml"]
RUN = WORK / "runs" / HOMEWORK / LEVEL
leeml("fit", "--config", PROJECT / f"configs/{HOMEWORK}/{LEVEL}.yaml", *FLAGS, "--data.dir", DATA, "--run_dir", RUN)"""
TEST = """\
leeml("test", "--run_dir", RUN)
leeml("predict", "--run_dir", RUN)
print(*RUN.glob("submission.*"))  # to be handed in"""
FIGURES = """\
from IPython.display import Image, display

for picture in sorted((RUN / "figures").rglob("*.png")):
    print(picture.stem)
    display(Image(filename=str(picture)))"""


def notebook(name: str) -> dict[str, Any]:
    """The notebook of a homework in the format of Jupyter, version 4.5."""
    title, competition = HOMEWORKS[name]
    texts = [
        ("markdown", INTRODUCTION.format(title=title, competition=competition, name=name)),
        ("code", SETUP),
        ("code", DATA.format(name=name)),
        ("markdown", "## Train\n\nA second call needs another `RUN`, or `--resume`."),
        ("code", FIT),
        ("markdown", "## Scores and the submission"),
        ("code", TEST),
        ("markdown", "## Pictures"),
        ("code", FIGURES),
    ]
    cells: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(texts):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text_of(name: str) -> str:
    """The file of a notebook."""
    return json.dumps(notebook(name), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in HOMEWORKS:
        (HERE / f"{name}.ipynb").write_text(text_of(name), encoding="utf-8")
