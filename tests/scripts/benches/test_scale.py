"""Every set is written, opened twice and batched, at a small share of its size; nothing is left."""

import contextlib
import io
import subprocess

import pytest
from conftest import answer

from scripts.benches import scale


@pytest.mark.parametrize("homework", scale.SETS)
def test_a_set_is_written_in_the_course_s_layout_and_made_into_batches(homework, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    kind, write, _ = scale.SETS[homework]
    write(tmp_path / "set", 0.02)
    assert kind.has_files(tmp_path / "set")
    monkeypatch.setattr(scale, "BATCHES", 3)
    scale.use(homework, str(tmp_path / "set"))
    assert '"rows": ' in capsys.readouterr().out


def in_this_process(line, **options):
    """In place of a process of its own, whose imports take longer than all else."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(line[2], {})
    return subprocess.CompletedProcess(line, 0, out.getvalue(), "")


def test_a_set_is_used_twice_and_deleted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", in_this_process)
    place = tmp_path / "place"
    place.mkdir()
    scale.main(["hw2_phoneme", "--share", "0.005", "--place", str(place)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "hw2_phoneme" in line]
    assert [row[1] for row in rows] == ["first", "later"]
    _, rates, own = zip(*([float(cell.replace(",", "")) for cell in row[2:5]] for row in rows), strict=True)
    assert min(rates) > 0 < min(own)  # so small a set opens in 0.0 s and may stay within the imports' own peak
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [(["hw1_covid"], "hw1_covid"), (["--share", "0"], "--share 0.0"), (["--share", "2"], "--share 2.0")],
)
def test_mistakes_are_one_line(words, says):
    found = answer("bench", "scale", *words)
    assert found.code == 2
    assert says in found.err
    assert found.err.count("\n") == 1
