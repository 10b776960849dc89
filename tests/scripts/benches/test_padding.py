"""HW2's table of padding: batches of similar lengths have less of it than batches in random order."""

import numpy as np

from scripts.benches.hw2_phoneme import padding


def test_batches_of_similar_lengths_have_less_padding(capsys):
    padding({"drawn": np.random.default_rng(0).integers(100, 900, 400)})
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "drawn" in line]
    assert len(rows) == 2
    for row in rows:
        ours, plain = (float(cell.rstrip("%")) for cell in row[-2:])
        assert 0 <= ours < plain / 2
