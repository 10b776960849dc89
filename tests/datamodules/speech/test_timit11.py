"""Utterances out of the windows of TIMIT-11: rebuilt exactly by either rule of the borders, and where it fails."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.speech import timit11
from datamodules.speech.packed import windows
from datamodules.speech.timit11 import rebuild

WIDTH = 39


def windows_of(frames: np.ndarray, rule: str) -> np.ndarray:
    """Rows (N, 429) of one utterance (T, 39), frame by frame."""
    rows = []
    for centre in range(len(frames)):
        row = []
        for place in range(centre - 5, centre + 6):
            if 0 <= place < len(frames):
                row.append(frames[place])
            elif rule == "repeat":
                row.append(frames[0] if place < 0 else frames[-1])
            elif rule == "zeros":
                row.append(np.zeros(WIDTH, frames.dtype))
            else:
                break
        else:
            rows.append(np.concatenate(row))
    return np.array(rows, frames.dtype)


def utterances(lengths: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, WIDTH)).astype(np.float32) for length in lengths]


def saved(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "train_11.npy", rows)
    return folder / "train_11.npy"


@pytest.mark.parametrize("rule", ["repeat", "zeros", "inside"])
@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=st.integers(0, 99), block=st.integers(1, 40))
def test_random_utterances_come_back_exactly(tmp_path_factory, rule, lengths, seed, block):
    # so long that most rows go on from the row before
    spoken = utterances([length + (11 if rule == "inside" else 2) for length in lengths], seed)
    rows = np.concatenate([windows_of(frames, rule) for frames in spoken])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timit11, "BLOCK", block)
        patch.setattr(timit11, "JOINED", 0.0)
        found = rebuild(saved(tmp_path_factory.mktemp("rows"), rows))
    assert found is not None
    assert found.context is not None
    assert len(found) == len(spoken)
    around = {"repeat": 0, "zeros": 5, "inside": 5}[rule]
    assert found.context.tolist() == [[around, around]] * len(spoken)
    counts = [len(windows_of(frames, rule)) for frames in spoken]
    assert found.rows.diff().tolist() == counts
    for utterance, frames in enumerate(spoken):
        expected = np.pad(frames, ((5, 5), (0, 0))) if rule == "zeros" else frames
        np.testing.assert_array_equal(found[utterance], expected)
    places = torch.arange(len(rows)) + found.shift.repeat_interleave(torch.tensor(counts))
    again = windows(found.frames, found.offsets, places, 11)
    np.testing.assert_array_equal(again.flatten(1), rows)


def test_both_rules_in_one_file_and_an_utterance_of_one_frame(tmp_path):
    spoken = utterances([1, 20, 30], 0)
    rows = [windows_of(spoken[0], "repeat"), windows_of(spoken[1], "inside"), windows_of(spoken[2], "repeat")]
    found = rebuild(saved(tmp_path, np.concatenate(rows)))
    assert found.context.tolist() == [[0, 0], [5, 5], [0, 0]]
    assert found.rows.tolist() == [0, 1, 11, 41]
    np.testing.assert_array_equal(found.frames, np.concatenate(spoken))


def test_a_row_left_out_cuts_the_utterance_in_two(tmp_path):
    (frames,) = utterances([40], 0)
    found = rebuild(saved(tmp_path, np.delete(windows_of(frames, "repeat"), 15, axis=0)))
    assert found.rows.tolist() == [0, 15, 39]
    assert found.context.tolist() == [[0, 5], [5, 0]]
    np.testing.assert_array_equal(found[0], frames[:20])
    np.testing.assert_array_equal(found[1], frames[11:])


def test_the_same_silence_on_both_sides_of_a_border_joins(tmp_path):
    spoken = utterances([20, 20], 0)
    spoken[0][-6:] = spoken[1][:6] = 0.5
    found = rebuild(saved(tmp_path, np.concatenate([windows_of(frames, "repeat") for frames in spoken])))
    assert found.rows.tolist() == [0, 40]


def test_shuffled_rows_are_not_joined(tmp_path):
    rows = windows_of(utterances([100], 0)[0], "repeat")
    assert rebuild(saved(tmp_path, rows[np.random.default_rng(0).permutation(100)])) is None


def test_too_large_for_the_precision(tmp_path):
    rows = windows_of(utterances([30], 0)[0] * 1e6, "repeat")
    assert rebuild(saved(tmp_path, rows)) is not None
    with pytest.raises(DataError, match=r"train_11\.npy: a value in row 0 or after is too large for float16"):
        rebuild(tmp_path / "train_11.npy", "float16")
