"""datamodules/speech/packed.py: one map of all frames, windows as by hand."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.speech import packed
from datamodules.speech.libriphone import read_features
from datamodules.speech.packed import concatenate, pack, windows

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the maps; no test touches the project's own cache."""
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frames"


def utterances(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 39)).astype(np.float32) for length in lengths]


def saved(folder: Path, arrays: list[np.ndarray]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{n}.npy" for n in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def read(path: Path) -> np.ndarray:
    return np.load(path)


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(packed, "_build", fail)


class TestPack:
    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_as_the_files(self, tmp_path: Path, folder: Path, precision: packed.Precision) -> None:
        arrays = utterances([5, 1, 130, 7])
        found = pack(saved(tmp_path / "d", arrays), read, precision)
        whole = np.concatenate(arrays).astype(precision)
        assert found.frames.dtype == getattr(torch, precision)
        assert np.array_equal(found.frames.numpy(), whole)
        assert found.offsets.tolist() == [0, 5, 6, 136, 143]
        assert (len(found), found.lengths.tolist()) == (4, [5, 1, 130, 7])
        assert np.array_equal(found[2].numpy(), whole[6:136])
        assert found[2].data_ptr() == found.frames[6:].data_ptr()  # a view
        assert found.path is not None
        assert np.array_equal(np.load(found.path, mmap_mode="r"), whole)

    def test_tensor_files(self, tmp_path: Path) -> None:
        arrays = utterances([3, 4])
        for n, array in enumerate(arrays):
            torch.save(torch.from_numpy(array), tmp_path / f"{n}.pt")
        found = pack([tmp_path / "0.pt", tmp_path / "1.pt"], read_features)
        assert np.array_equal(found.frames.numpy(), np.concatenate(arrays))

    def test_other_widths_are_named(self, tmp_path: Path) -> None:
        paths = saved(tmp_path / "d", [*utterances([3, 4]), np.zeros((5, 40), np.float32)])
        with pytest.raises(DataError, match=r"/d/2\.npy: frames of shape \(40,\), expected 39 wide as in .*/d/0\.npy"):
            pack(paths, read)

    def test_opening_reads_no_file(self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arrays = utterances([3, 4])
        paths = saved(tmp_path / "d", arrays)
        pack(paths, read)
        no_reading(monkeypatch)
        assert np.array_equal(pack(paths, read).frames.numpy(), np.concatenate(arrays))
        (tmp_path / "d").rename(tmp_path / "e")  # a copy elsewhere is known by what it holds
        copies = [tmp_path / "e" / path.name for path in paths]
        assert pack(copies, read).path == pack(copies, read).path
        assert len(list(folder.glob("float32-*.offsets.npy"))) == 1
        for other in (
            lambda: pack(copies, read, "float16"),
            lambda: pack(copies[:1], read),
            lambda: pack(copies, np.load),
        ):
            with pytest.raises(AssertionError, match="read again"):
                other()

    def test_a_changed_file_is_seen(self, tmp_path: Path) -> None:
        paths = saved(tmp_path / "d", utterances([3, 4]))
        pack(paths, read)
        arrays = utterances([3, 4], seed=1)
        saved(tmp_path / "d", arrays)
        assert np.array_equal(pack(paths, read).frames.numpy(), np.concatenate(arrays))

    @pytest.mark.parametrize("damaged", ["frames", "offsets"])
    @pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
    def test_a_damaged_map_is_built_anew(self, tmp_path: Path, damaged: str, damage: bytes | None) -> None:
        paths = saved(tmp_path / "d", utterances([3, 4]))
        target = pack(paths, read).path
        assert target is not None
        path = target if damaged == "frames" else target.with_suffix(".offsets.npy")
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        assert np.array_equal(pack(paths, read).frames.numpy(), np.concatenate(utterances([3, 4])))

    def test_a_bad_file_is_named_and_leaves_nothing(self, tmp_path: Path, folder: Path) -> None:
        arrays = utterances([3, 4, 5])
        arrays[1][2, 2] = 70000
        paths = saved(tmp_path / "d", arrays)
        with pytest.raises(DataError, match=r"/d/1\.npy: a value that is no finite number, or too large for float16"):
            pack(paths, read, "float16")
        assert not [path for path in folder.iterdir() if path.suffix in (".npy", ".part")]
        assert pack(paths, read).frames[5, 2] == 70000
        paths[1].unlink()
        with pytest.raises(FileNotFoundError):
            pack(paths, read)

    def test_another_process_opens_the_map(self, tmp_path: Path) -> None:
        found = pack(saved(tmp_path / "d", utterances([3000])), read)
        sent = pickle.dumps(found)
        assert len(sent) < 1000
        assert torch.equal(pickle.loads(sent).frames, found.frames)
        alone = concatenate(utterances([3, 4]))
        assert torch.equal(pickle.loads(pickle.dumps(alone)).frames, alone.frames)
        assert alone.offsets.tolist() == [0, 3, 7]


class TestWindows:
    @given(
        lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
        half=st.integers(0, 9),
        seed=st.integers(0, 99),
    )
    def test_brute_force(self, lengths: list[int], half: int, seed: int) -> None:
        arrays = utterances(lengths, seed)
        found = concatenate(arrays)
        n = 2 * half + 1
        padded = [np.pad(x, ((half, half), (0, 0)), mode="edge") for x in arrays if len(x)]
        expected = np.stack([x[t : t + n] for x in padded for t in range(len(x) - 2 * half)])
        index = np.random.default_rng(seed).integers(0, len(expected), 20)
        got = windows(found.frames, found.offsets, torch.from_numpy(index), n)
        assert np.array_equal(got.numpy(), expected[index])

    def test_precision_is_kept(self) -> None:
        found = concatenate([x.astype(np.float16) for x in utterances([5])])
        got = windows(found.frames, found.offsets, torch.tensor([0, 4]), 3)
        assert got.dtype == torch.float16
        assert torch.equal(got[1], found.frames[[3, 4, 4]])

    def test_nothing_is_copied_beyond_the_batch(self, tmp_path: Path) -> None:
        """Windows of 200,000 frames would fill 655 MB; the process grows by the frames' own 31 MB and a bit."""
        np.save(tmp_path / "a.npy", np.zeros((200_000, 39), np.float32))
        code = """
import resource, sys, numpy as np, torch
from pathlib import Path
from datamodules.speech.packed import pack, windows
found = pack([Path(sys.argv[1])], np.load)
batches = torch.randperm(200_000, generator=torch.Generator().manual_seed(0)).split(512)
windows(found.frames[:1000], torch.tensor([0, 1000]), torch.arange(512), 21)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
total = sum(windows(found.frames, found.offsets, batch, 21).shape[0] for batch in batches)
print(total, peak() - before)
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.npy")],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        total, growth = done.stdout.split()
        assert int(total) == 200_000
        assert float(growth) < 60  # MB; the pages of the map count
