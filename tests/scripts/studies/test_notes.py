"""docs/notes.md is what its parts say, and its headings are those of the lecture notes."""

import re
from pathlib import Path

import pytest

from scripts.studies.lab import machine
from scripts.studies.lab.notes import HEADINGS, notes

PROJECT = Path(machine.__file__).resolve().parents[3]
SEED = PROJECT.parent / "shared" / "seed"
NO_HEADINGS = {
    "ML|Hung-yi Lee", "Oct 19, 2024", "Published", "AI", "Pytorch", "Post", "Machine LearningLook For Function",
    "Steps to find the function(or ML)", "Code", "Code(没调参,稀烂)", "Starting at 𝜽𝟎,Movement 𝒎𝟎 = 𝟎",
    "Pooling可以没有,比如AlphaGo使用了CNN,但没有Pooling", "Muti-Head=CNN里多个卷积核(决定输出通道数)",
    "No position information in self-attention.", "Another predictor for output length",
}  # fmt: skip
"""Short lines of the notes that are text, or say what the page is."""


def test_the_committed_notes_are_the_generated_ones():
    text = (PROJECT / "docs" / "notes.md").read_text(encoding="utf-8")
    assert text == notes(PROJECT / "docs" / "studies"), "write them anew: make notes"


def test_notes_without_any_result_name_every_study(tmp_path):
    text = notes(tmp_path)
    assert text.count("no result is recorded") == len(machine.names())
    assert "**" not in text


def test_headings_are_those_of_the_lecture_notes():
    """Every short line that begins with a capital letter, and is no item of a list, is a heading or known as text."""
    if not SEED.is_dir():
        pytest.skip(f"the lecture notes are not at {SEED}")
    lines = [line.strip() for path in sorted(SEED.glob("*.txt")) for line in path.read_text("utf-8").splitlines()]
    short = [line for line in lines if re.fullmatch(r"[A-Z][\w|&=+,.和是() -]{1,44}", line) and "。" not in line]
    assert [line for line in short if line not in NO_HEADINGS] == [heading.notes for heading in HEADINGS]


def test_every_study_stands_under_a_heading_and_in_the_order_of_the_notes():
    places = [machine.load(name).number for heading in HEADINGS for name in heading.studies[:1]]
    assert {name for heading in HEADINGS for name in heading.studies} == set(machine.names())
    assert [places.index(number) for number in sorted(set(places))] == sorted({places.index(n) for n in places})


@pytest.mark.parametrize("heading", HEADINGS, ids=lambda heading: heading.notes)
def test_a_heading_leads_somewhere(heading):
    assert all((PROJECT / path).is_file() for path in heading.code)
    assert heading.studies or heading.command
    config = re.search(r"--config (\S+)", heading.command)
    assert config is None or (PROJECT / config[1]).is_file()
