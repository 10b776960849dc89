"""PhonemeData: each frame once, windows and utterances against brute force, folds, facts, every layout, mistakes."""

import shutil
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import hw2_phoneme
from datamodules.errors import DataError
from datamodules.hw2_phoneme import FEWEST, MOST, PhonemeData, derived_batch
from datamodules.speech import Part
from datamodules.speech.libriphone import Utterance, UtteranceList, write_layout
from datamodules.speech.packed import concatenate
from datamodules.speech.phones import classes

CPU = SimpleNamespace(root_device=torch.device("cpu"))
LENGTHS = [9, 30, 4, 17, 1, 22, 13, 8, 25, 11]
NAMES = ["a", "sil", "b"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))


def marked(number: int, length: int) -> np.ndarray:
    """Frames (T, 39) that tell their utterance and their place, exactly in float16; none is 0."""
    return np.stack([np.full(length, number + 1), np.arange(length) + 1, *[np.full(length, k) for k in range(37)]], 1)


def said(number: int, length: int, count: int = len(NAMES)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, count, length)


def write_set(folder: Path, lengths: Iterable[int] = LENGTHS, part: Part = "train", names=NAMES, labelled=True) -> Path:
    spoken = [
        Utterance(f"{part}{k}", marked(k, n), said(k, n, len(names)) if labelled else None)
        for k, n in enumerate(lengths)
    ]
    write_layout(folder, part, spoken, names)
    return folder


def write_course(folder: Path, lengths: Iterable[int] = LENGTHS) -> Path:
    """As the course publishes it: neither names nor speakers."""
    write_set(folder, lengths)
    (folder / "phones.txt").unlink()
    return folder


def phonemes(folder: Path, stage: str = "fit", **options: Any) -> PhonemeData:
    data = PhonemeData(dir=str(folder), **options)
    data.setup(stage)
    return data


def in_memory(lengths: list[int], speakers: list[str] | None = None, **options: Any) -> PhonemeData:
    data = PhonemeData(**options)
    labels = [said(k, n) for k, n in enumerate(lengths)]
    data.part = UtteranceList([str(k) for k in range(len(lengths))], [], labels, speakers)
    data.frames = concatenate([marked(k, n).astype(np.float16) for k, n in enumerate(lengths)])
    data.targets, data.names = torch.from_numpy(np.concatenate(labels)), NAMES
    return data


def as_rank(data: PhonemeData, rank: int, world: int) -> PhonemeData:
    connector = SimpleNamespace(use_distributed_sampler=False)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, _accelerator_connector=connector, lightning_module=None, strategy=CPU
    )
    return data


def epoch_of(data: PhonemeData, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def rows_of(batches: Iterable[dict[str, torch.Tensor]]) -> list[int]:
    return [int(r) for b in batches for r in (b["row"][b["mask"]] if "mask" in b else b["row"])]


def check_windows(batch: dict[str, torch.Tensor], lengths: list[int], window: int) -> None:
    """Against the definition: frame by frame, held inside the utterance."""
    offsets = np.cumsum([0, *lengths])
    for x, y, row in zip(batch["x"].numpy(), batch["y"].tolist(), batch["row"].tolist(), strict=True):
        u = int(np.searchsorted(offsets, row, side="right")) - 1
        t, whole = row - offsets[u], marked(u, lengths[u])
        places = [min(max(t + d, 0), lengths[u] - 1) for d in range(-(window // 2), window // 2 + 1)]
        np.testing.assert_array_equal(x, whole[places])
        assert y == said(u, lengths[u])[t]


def check_utterances(batch: dict[str, torch.Tensor], lengths: list[int]) -> None:
    offsets = np.cumsum([0, *lengths])
    assert batch["x"].shape[:2] == batch["mask"].shape == batch["row"].shape == batch["y"].shape
    assert batch["mask"].any(0).all(), "a column of padding alone"
    for x, y, row, mask in zip(*(batch[key].numpy() for key in ("x", "y", "row", "mask")), strict=True):
        u = int(np.searchsorted(offsets, row[0], side="right")) - 1
        n = lengths[u]
        assert mask.tolist() == [True] * n + [False] * (len(mask) - n)
        np.testing.assert_array_equal(x[:n], marked(u, n))
        assert not x[n:].any()
        assert row.tolist() == [*range(offsets[u], offsets[u + 1])] + [offsets[u + 1] - 1] * (len(mask) - n)
        assert y.tolist() == [*said(u, n).tolist()] + [said(u, n)[-1]] * (len(mask) - n)


# each frame once


def test_all_folds_derive_the_same_batch(tmp_path, monkeypatch):
    """Else folds of unequal length would train in other batches, and leeml kfold could not join them."""
    monkeypatch.setattr(hw2_phoneme, "FEWEST", 1)
    folder = write_set(tmp_path, [90, 300, 100, 500])
    found = [phonemes(folder, batch_size=None, folds=2, fold=fold) for fold in (0, 1)]
    assert len(found[0].chosen_folds()[0].train) != len(found[1].chosen_folds()[0].train)
    assert found[0].settled == found[1].settled == {"batch_size": 990 // 2 // 50}


@given(frames=st.integers(1, 10**7), more=st.integers(0, 10**6))
def test_a_derived_batch_grows_with_the_frames_and_has_ends(frames, more):
    assert FEWEST <= derived_batch(frames) <= derived_batch(frames + more) <= MOST
    if FEWEST < derived_batch(frames) < MOST:
        assert frames / derived_batch(frames) == pytest.approx(50, rel=0.01)  # steps of an epoch


@pytest.mark.parametrize("window", [None, 3])
def test_no_batch_size_is_one_for_the_training_frames(tmp_path, monkeypatch, window):
    monkeypatch.setattr(hw2_phoneme, "FEWEST", 30)
    folder = write_set(tmp_path)
    data, same = phonemes(folder, window=window, batch_size=None), phonemes(folder, window=window, batch_size=30)
    assert (data.settled, same.settled) == ({"batch_size": 30}, {})
    batches, expected = ([batch["row"].tolist() for batch in epoch_of(part)] for part in (data, same))
    assert batches == expected


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=10, max_size=25),
    window=st.sampled_from([1, 3, 11, None]),
    batch_size=st.integers(4, 200),
    world=st.sampled_from([1, 2]),
    folds=st.integers(2, 5),
    fold=st.integers(0, 1),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_every_frame_once_and_as_it_is(lengths, window, batch_size, world, folds, fold, seed, epoch):
    options = {"window": window, "batch_size": batch_size, "folds": folds, "fold": fold, "seed": seed}
    data = in_memory(lengths, **options)
    train, val = data.chosen_folds()[0]
    ranks = [as_rank(in_memory(lengths, **options), rank, world) for rank in range(world)]
    learnt = [epoch_of(rank, epoch) for rank in ranks]
    assert len({len(share) for share in learnt}) == 1, "ranks wait for each other"
    seen = Counter(rows_of(b for share in learnt for b in share))
    lost = set(train.tolist()) - seen.keys()
    assert max(seen.values()) == 1
    assert not seen.keys() - set(train.tolist())
    # whole utterances are all there; of single frames a last batch too small for batch norm on all ranks is left out
    assert len(lost) == (0 if window is None or len(train) % batch_size >= 2 * world else len(train) % batch_size)
    judged = [list(rank.val_dataloader()) for rank in ranks]
    assert sorted(rows_of(b for share in judged for b in share)) == val.tolist()
    for batch in (b for share in (*learnt, *judged) for b in share):
        if window is None:
            check_utterances(batch, lengths)
        else:
            check_windows(batch, lengths, window)
    for batch in (b for share in judged for b in share if window is not None):
        # one utterance after the other: a step of more than 1 only where one ends
        parts = batch["row"].split(batch["lengths"])
        starts = np.cumsum([0, *lengths])
        assert all(part.diff().eq(1).all() and int(part[0]) in starts for part in parts)


def test_epochs_differ_and_repeat_themselves(tmp_path):
    folder = write_set(tmp_path)
    for window, size in ((5, 16), (None, 64)):
        orders = [rows_of(epoch_of(phonemes(folder, window=window, batch_size=size), e)) for e in (0, 0, 1)]
        other = rows_of(epoch_of(phonemes(folder, window=window, batch_size=size, seed=1, fold=0), 0))
        assert orders[0] == orders[1] != orders[2]
        assert other != orders[0]


@pytest.mark.parametrize("window", [3, None])
def test_batches_are_as_large_as_asked_for(tmp_path, window):
    batches = epoch_of(phonemes(write_set(tmp_path), window=window, batch_size=40))
    sizes = [b["row"].numel() for b in batches]
    assert max(sizes) <= 40
    assert len(sizes) > 1


def test_judging_takes_little_at_once(tmp_path, monkeypatch):
    """A long test part is cut into batches of so many frames, padding and all."""
    monkeypatch.setattr(hw2_phoneme, "JUDGED", 40)
    write_set(tmp_path, LENGTHS * 3, "test", labelled=False)
    for window in (3, None):
        batches = list(phonemes(tmp_path, "predict", window=window).predict_dataloader())
        assert max(b["row"].numel() for b in batches) <= 40


# splits


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=12, max_size=30),
    voices=st.integers(2, 6),
    known=st.booleans(),
    choice=st.sampled_from(["utterance", "speaker", None]),
    seed=st.integers(0, 2**31),
)
def test_folds_are_disjoint_and_cover_everything(lengths, voices, known, choice, seed):
    speakers = [f"s{k % voices}" for k in range(len(lengths))] if known else None
    data = in_memory(lengths, speakers, split=choice if known else None, seed=seed, folds=2)
    offsets = np.cumsum([0, *lengths])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    folds = data.split()
    assert sorted(np.concatenate([fold.val for fold in folds])) == list(range(offsets[-1]))
    for train, val in folds:
        assert sorted([*train, *val]) == list(range(offsets[-1]))
        assert not set(owner[train]) & set(owner[val]), "an utterance on both sides"
        sides = [{(speakers or [])[u] for u in owner[rows]} if known else set() for rows in (train, val)]
        if choice != "utterance":
            assert not sides[0] & sides[1], "a speaker on both sides"


def test_seed_decides_the_folds(tmp_path):
    folder = write_set(tmp_path)
    vals = [[f.val.tolist() for f in phonemes(folder, seed=s).split()] for s in (0, 0, 1)]
    assert vals[0] == vals[1] != vals[2]
    # the number of a fold is its place among them
    assert phonemes(folder, fold=3).chosen_folds()[0].val.tolist() == vals[0][3]
    assert sorted(rows_of(phonemes(folder, fold=3).val_dataloader())) == vals[0][3]


@pytest.fixture(scope="module")
def timit(tmp_path_factory, real_data):
    """The real recordings of 13 speakers, prepared into a root."""
    root = tmp_path_factory.mktemp("timit")
    archive = real_data("hw2_phoneme") / "timit_sample_13spk.zip"
    PhonemeData.prepare(root / "hw2_phoneme", archive)
    PhonemeData.prepare(root / "other" / "hw2_phoneme", archive, split="test", phones=48)
    return root


def test_the_real_speakers(timit):
    data = PhonemeData(root=str(timit), window=None)
    assert data.locate() == timit / "hw2_phoneme" / "prepared"
    data.setup("fit")
    assert len(data.targets) == 39866
    assert data.facts["classes"] == classes(39)
    assert data.facts["silence"] == 38
    assert data.baselines() == []
    speakers = np.repeat(data.part.speakers, data.frames.lengths)
    assert len(set(speakers)) == 13
    folds = data.split()
    assert sorted(len(set(speakers[fold.val])) for fold in folds) == [2, 2, 3, 3, 3]
    for train, val in folds:
        assert set(speakers[train]) | set(speakers[val]) == set(speakers)
        assert not set(speakers[train]) & set(speakers[val])
    by_utterance = PhonemeData(root=str(timit), window=None, split="utterance")
    by_utterance.setup("fit")
    assert len(set(speakers[by_utterance.split()[0].val])) > 3
    # phones last: a class follows itself far more often than any other
    chances = data.facts["transitions"].exp()
    assert chances.diagonal().mean() > 0.6


def test_recordings_prepared_as_a_test_part_keep_their_labels(timit):
    data = PhonemeData(root=str(timit / "other"), window=None)
    data.setup("test")
    assert len(data.test_targets) == 39866
    assert data.describe_test() == "39866 frames of the test utterances, whose labels are there"
    batches = list(data.test_dataloader())
    assert sorted(rows_of(batches)) == list(range(39866))
    assert all(torch.equal(b["y"], data.test_targets[b["row"]]) for b in batches)
    assert sum(b["mask"].numel() for b in batches) < 1.1 * 39866, "padding"
    model = PhonemeData(root=str(timit), window=None)
    model.setup("fit")
    data.expect(model.facts)
    with pytest.raises(DataError, match="48 classes"):
        data.setup("test")


# TIMIT-11


STREAM = 300


@pytest.fixture
def eleven(tmp_path):
    """TIMIT-11 in another order: row r is frames 2 r to 2 r + 10 of one stream, the labels are strings."""
    folder = tmp_path / "data" / "timit_11"
    folder.mkdir(parents=True)
    frames = np.arange(2 * STREAM + 10)[:, None] + np.linspace(0, 0.5, 39)
    rows = np.stack([frames[2 * r : 2 * r + 11].ravel() for r in range(STREAM)]).astype(np.float32)
    np.save(folder / "train_11.npy", rows)
    np.save(folder / "train_label_11.npy", np.array([str(r % 39) for r in range(STREAM)]))
    np.save(folder / "test_11.npy", rows[:70] + 1000)
    return folder.parent


@pytest.mark.parametrize("fold", [0, 2, 4])
def test_timit11_holds_out_a_stretch_and_leaves_its_neighbours_out(eleven, fold):
    data = phonemes(eleven, window=11, fold=fold, batch_size=30)
    assert data.targets.tolist() == [r % 39 for r in range(STREAM)]
    assert data.facts["classes"] == classes(39)
    train, val = data.chosen_folds()[0]
    assert val.tolist() == list(range(240 - 60 * fold, 300 - 60 * fold))  # the course's tail is fold 0
    assert min(abs(int(t) - int(v)) for t in train for v in val) == 11, "10 rows on each side, and no more"
    learnt, judged = epoch_of(data), list(data.val_dataloader())
    assert sorted(rows_of(learnt)) == train.tolist()
    assert rows_of(judged) == val.tolist()
    frames = [{int(f) for b in part for f in b["x"][:, :, 0].floor().flatten()} for part in (learnt, judged)]
    assert not frames[0] & frames[1], "a frame on both sides"
    for batch in judged:
        assert batch["y"].tolist() == [r % 39 for r in batch["row"].tolist()]
        assert "lengths" not in batch, "where utterances end is unknown"


@pytest.mark.parametrize("window", [1, 7, 11])
def test_timit11_narrower_windows_are_the_middle_of_the_rows(eleven, window):
    rows = np.load(eleven / "timit_11" / "train_11.npy")
    for batch in epoch_of(phonemes(eleven, window=window)):
        assert batch["x"].shape[1:] == (window, 39)
        first = (11 - window) // 2 * 39
        middle = rows[batch["row"].numpy(), first : first + window * 39]
        np.testing.assert_array_equal(batch["x"].flatten(1), middle)


@pytest.mark.parametrize("window", [None, 13])
def test_timit11_in_another_order_has_no_utterances_and_no_wider_windows(eleven, window):
    for stage, part in (("fit", "train"), ("predict", "test")):
        with pytest.raises(
            DataError, match=rf"{part}_11\.npy: fewer than half of the rows go on .* set data.window to at"
        ):
            phonemes(eleven, stage, window=window)


def test_timit11_in_two_processes_and_to_predict(eleven):
    parts = [as_rank(phonemes(eleven, window=5, batch_size=50), rank, 2) for rank in range(2)]
    train, val = parts[0].chosen_folds()[0]
    assert sorted(rows_of(b for part in parts for b in epoch_of(part))) == train.tolist()
    assert sorted(rows_of(b for part in parts for b in part.val_dataloader())) == val.tolist()
    data = phonemes(eleven, "predict", window=5)
    batches = list(data.predict_dataloader())
    assert rows_of(batches) == list(range(70))
    assert all("y" not in batch for batch in batches)
    assert batches[0]["x"][:, 2, 0].tolist() == [1005 + 2 * r for r in range(70)]
    parts[0].trainer = None
    names, y = parts[0].labels(np.array([3, 45]))
    assert (names, y.tolist()) == (["3", "45"], [3, 6])


SPOKEN = [30, 18, 40, 13, 22, 35, 11, 27, 16, 24]


def rows_of_timit(lengths: Iterable[int], rule: str) -> np.ndarray:
    """Rows (N, 429) of `marked` utterances; their borders repeated, or windows inside alone."""
    spoken = (
        np.pad(marked(k, n), ((5, 5), (0, 0)), "edge") if rule == "repeat" else marked(k, n)
        for k, n in enumerate(lengths)
    )
    views = [
        np.lib.stride_tricks.sliding_window_view(x, 11, axis=0).transpose(0, 2, 1).reshape(-1, 429) for x in spoken
    ]
    return np.concatenate(views).astype(np.float32)


@pytest.fixture(params=["repeat", "inside"])
def joined(request, tmp_path):
    """As in 2021, by either rule of the borders; its name is that of the rule."""
    folder = tmp_path / request.param / "timit_11"
    folder.mkdir(parents=True)
    rows = rows_of_timit(SPOKEN, request.param)
    np.save(folder / "train_11.npy", rows)
    np.save(folder / "train_label_11.npy", np.array([str(r % 39) for r in range(len(rows))]))
    np.save(folder / "test_11.npy", rows_of_timit(reversed(SPOKEN), request.param))
    return folder.parent


def counts(rule: str, lengths: Iterable[int] = SPOKEN) -> list[int]:
    return [n if rule == "repeat" else n - 10 for n in lengths]


@pytest.mark.parametrize("window", [7, 11, 19, None])
def test_timit11_is_utterances_again(joined, window):
    """Each row once, with its own label and the frames around it, also those beyond the eleven of its row."""
    total, around = sum(counts(joined.name)), 0 if joined.name == "repeat" else 5
    seen = []
    for fold in range(3):
        data = phonemes(joined, window=window, folds=3, fold=fold, batch_size=150)
        train, val = data.chosen_folds()[0]
        learnt, judged = epoch_of(data), list(data.val_dataloader())
        for batches, rows in ((learnt, train), (judged, val)):
            for batch in batches:
                there = batch["places"] if window is None else slice(None)
                row, y = (batch[name].flatten()[there] for name in ("row", "y"))
                seen += row.tolist() if batches is judged else []
                assert (y == row % 39).all()
                assert set(row.tolist()) <= set(rows.tolist())
                ends = np.cumsum([0, *counts(joined.name)])
                utterance = np.searchsorted(ends, row.numpy(), side="right") - 1
                time = row.numpy() - ends[utterance] + around
                if window is None:
                    x = batch["x"].flatten(0, 1)[there]
                    assert x[:, 0].tolist() == (utterance + 1).tolist()
                    assert x[:, 1].tolist() == (time + 1).tolist()
                    assert batch["mask"].sum().item() == sum(batch["lengths"]) + 2 * around * len(batch["lengths"])
                else:
                    near = time[:, None] + np.arange(-(window // 2), window // 2 + 1)
                    near = near.clip(0, np.array(SPOKEN)[utterance, None] - 1)
                    np.testing.assert_array_equal(batch["x"][:, :, 1], near + 1)
                    assert (batch["x"][:, :, 0].numpy() == utterance[:, None] + 1).all()
        assert not set(train) & set(val)
        assert len(train) + len(val) == total
        assert val.max() < train.min() or train.max() < val.min() or fold == 1, "one stretch"
        assert (fold == 0) == (total - 1 in val), "the course's tail is fold 0"
    assert sorted(seen) == list(range(total))


@pytest.mark.parametrize("window", [1, 19, None])
def test_timit11_predicts_each_row_of_the_test_once(joined, window):
    data = phonemes(joined, "predict", window=window)
    batches = list(data.predict_dataloader())
    rows = [b["row"].flatten()[b["places"]] if window is None else b["row"] for b in batches]
    assert sorted(torch.cat(rows).tolist()) == list(range(sum(counts(joined.name))))
    assert sum(sum(b["lengths"]) for b in batches) == sum(counts(joined.name))


def test_timit11_names_its_rows_and_wants_enough_utterances(joined):
    data = phonemes(joined)
    first, second = counts(joined.name)[:2]
    names = data.labels(np.array([first - 1, first]))[0]
    assert names == [f"rows 0-{first - 1}:{first - 1}", f"rows {first}-{first + second - 1}:0"]
    with pytest.raises(DataError, match="the speakers are not known"):
        phonemes(joined, split="speaker")
    long = rows_of_timit([200, 20, 20, 20, 20], joined.name)  # one utterance is most of the rows
    np.save(joined / "timit_11" / "train_11.npy", long)
    np.save(joined / "timit_11" / "train_label_11.npy", np.zeros(len(long), int))
    with pytest.raises(DataError, match=r"5 utterances cannot be cut into data.folds = 5 stretches"):
        phonemes(joined)


# facts


@pytest.mark.parametrize("split", ["layout", "eleven"])
def test_transitions_are_counted_in_the_training_frames_alone(tmp_path, eleven, split):
    data = phonemes(write_set(tmp_path / "set")) if split == "layout" else phonemes(eleven, window=11)
    rows = set(data.chosen_folds()[0].train.tolist())
    count, y = len(data.facts["classes"]), data.targets.tolist()
    stretches = np.cumsum([0, *LENGTHS]) if split == "layout" else [0, STREAM]
    expected = np.ones((count, count))
    for start, end in pairwise(stretches):
        for a, b in pairwise(range(start, end)):
            if a in rows and b in rows:
                expected[y[a], y[b]] += 1
    np.testing.assert_allclose(
        data.facts["transitions"], np.log(expected / expected.sum(1, keepdims=True)), rtol=1e-5, atol=1e-6
    )


def test_names_and_silence(tmp_path):
    facts = phonemes(write_set(tmp_path / "named"), window=7).facts
    assert (facts["classes"], facts["silence"], facts["features"], facts["window"]) == (NAMES, 1, 39, 7)
    facts = phonemes(write_course(tmp_path / "course")).facts
    assert (facts["classes"], facts["silence"]) == ([str(number) for number in range(41)], 0)


# results


def test_labels_name_utterance_and_frame(tmp_path):
    data = phonemes(write_set(tmp_path))
    names, y = data.labels(np.array([0, 8, 9, 38, 43, 60]))
    assert names == ["train0:0", "train0:8", "train1:0", "train1:29", "train3:0", "train4:0"]
    assert y.tolist() == [said(0, 9)[0], said(0, 9)[8], said(1, 30)[0], said(1, 30)[29], said(3, 17)[0], said(4, 1)[0]]


def test_submission_and_score():
    data = PhonemeData()
    shares = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    assert data.submission(shares) == (["Id", "Class"], [[0, 1], [1, 0], [2, 2]])
    assert data.score(np.array([1, 1, 2]), data.decide(shares)) == pytest.approx(2 / 3)


def test_the_edition_is_known_by_its_number_of_frames():
    data = PhonemeData()
    assert data.baselines() == []
    for count, year, boss in ((1_229_932, "2021", "0.76023"), (2_644_158, "2022", "0.82324"), (2_116_794, "2023", "")):
        data.targets = torch.zeros(1).expand(count)
        (found,) = data.baselines()
        assert found.edition == year
        assert boss in str(list(found.levels.values()))


@pytest.mark.parametrize("window", [3, None])
@pytest.mark.parametrize("world", [1, 2])
def test_predictions_are_in_the_order_of_the_split_file(tmp_path, monkeypatch, window, world):
    """Which is neither that of the names nor, where batches are of like length, that of the batches."""
    monkeypatch.setattr(hw2_phoneme, "JUDGED", 60)
    write_set(tmp_path, LENGTHS, "test", labelled=False)
    names = [f"test{k}" for k in np.random.default_rng(0).permutation(len(LENGTHS))]
    (tmp_path / "test_split.txt").write_text("\n".join(names))
    ranks = [as_rank(phonemes(tmp_path, "predict", window=window), rank, world) for rank in range(world)]
    batches = [batch for rank in ranks for batch in rank.predict_dataloader()]
    assert len(batches) > world
    rows = rows_of(batches)
    assert rows != sorted(rows), "not a test of the order"
    if window is None:
        x = torch.cat([batch["x"][batch["mask"]] for batch in batches])
    else:
        x = torch.cat([batch["x"][:, 1] for batch in batches])
    assert sorted(rows) == list(range(sum(LENGTHS)))
    numbers = [int(name.removeprefix("test")) for name in names]
    expected = np.concatenate([marked(k, LENGTHS[k]) for k in numbers])
    np.testing.assert_array_equal(x[torch.tensor(rows).argsort()], expected)


def test_labelled_test_utterances_are_scored_and_others_not(tmp_path):
    write_set(tmp_path)
    write_set(tmp_path, [5, 12], "test", labelled=False)
    data = phonemes(tmp_path, "test")
    assert "held-out" in data.describe_test()
    assert sorted(rows_of(data.test_dataloader())) == data.split()[0].val.tolist()
    (tmp_path / "test_labels.txt").write_text("test1 " + "1 " * 12 + "\ntest0 0 0 2 0 0\n")
    data = phonemes(tmp_path, "test", window=None)
    batches = list(data.test_dataloader())
    y = torch.cat([batch["y"][batch["mask"]] for batch in batches])
    assert y[torch.tensor(rows_of(batches)).argsort()].tolist() == [0, 0, 2, 0, 0] + [1] * 12
    assert data.describe_test().startswith("17 frames of the test utterances")
    (tmp_path / "test_labels.txt").write_text("test1 " + "1 " * 12 + "\ntest0 0 0 2 0\n")
    with pytest.raises(DataError, match=r"test0\.pt: 5 frames, but 4 labels of utterance test0"):
        phonemes(tmp_path, "test")


def test_what_differs_from_the_models_data_is_refused(tmp_path):
    folder = write_set(tmp_path / "mine")
    write_set(folder, [5, 12], "test")
    data = phonemes(folder, window=3)

    def again(stage, where=folder, facts=None, **options):
        other = PhonemeData(dir=str(where), **({"window": 3} | options))
        other.expect(data.facts | (facts or {}))
        other.setup(stage)

    for stage in ("validate", "test", "predict"):
        again(stage)  # its own
        with pytest.raises(DataError, match=r"has 3 classes \(a, sil, b\), .* trained on 2 classes \(x, y\)$"):
            again(stage, facts={"classes": ["x", "y"]})
        with pytest.raises(DataError, match=r"data\.window is 5, but the model was trained with 3"):
            again(stage, window=5)
        with pytest.raises(DataError, match=r"data\.window is null, but the model was trained with 3"):
            again(stage, window=None)
    for changed in ({"folds": 3}, {"fold": 1}, {"seed": 1}):
        with pytest.raises(DataError, match=r"other rows are held out here than in the run.*data\.seed"):
            again("validate", **changed)
    # of a course's test part nothing is known but that its labels are the model's
    alone = write_set(tmp_path / "alone", [4], "test")
    (alone / "phones.txt").unlink()
    again("test", alone)
    (alone / "test_labels.txt").write_text("test0 0 1 3 0")
    with pytest.raises(DataError, match=r"test_labels\.txt, line 1: utterance test0 has class 3 at frame 2; expected"):
        again("test", alone)


# files


def zipped(folder: Path, target: Path) -> Path:
    with ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder))
    return target


def test_zips_of_course_files_are_unpacked(tmp_path, eleven):
    write_course(tmp_path / "made" / "libriphone")
    root = tmp_path / "root"
    (root / "hw2_phoneme").mkdir(parents=True)
    zipped(tmp_path / "made", root / "hw2_phoneme" / "ml2022spring-hw2.zip")
    with pytest.raises(DataError, match="unpack it first: leeml data prepare hw2_phoneme"):
        PhonemeData(root=str(root)).setup("fit")
    assert PhonemeData.prepare(root / "hw2_phoneme") == [root / "hw2_phoneme" / "ml2022spring-hw2"]
    data = PhonemeData(root=str(root))
    data.setup("fit")
    assert len(data.targets) == sum(LENGTHS)
    # the zip of 2021 has the folder twice, one in the other
    inner = shutil.copytree(eleven / "timit_11", tmp_path / "twice" / "timit_11" / "timit_11")
    assert inner.is_dir()
    archive = zipped(tmp_path / "twice", tmp_path / "ml2021spring-hw2.zip")
    (made,) = PhonemeData.prepare(tmp_path / "new" / "hw2_phoneme", archive)
    data = PhonemeData(root=str(tmp_path / "new"), window=11)
    assert data.locate() == made
    data.setup("fit")
    assert len(data.targets) == STREAM


def test_prepare_wants_one_source(tmp_path):
    for count in (0, 2):
        with pytest.raises(DataError, match=f"{count} archives here; name one, or a folder of recordings, with --so"):
            PhonemeData.prepare(tmp_path)
        for name in "ab":
            (tmp_path / f"{name}.zip").write_bytes(b"no zip")
    for source in (tmp_path / "a.zip", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=source.name):
            PhonemeData.prepare(tmp_path, source)


def test_the_real_features_without_labels(real_data, tmp_path):
    source = real_data("hw2_phoneme") / "libriphone_feature_sample_unlabelled.zip"
    (made,) = PhonemeData.prepare(tmp_path / "hw2_phoneme", source)
    data = PhonemeData(root=str(tmp_path), window=None)
    assert data.locate() in (made, made.parent)
    with pytest.raises(DataError, match=r"libriphone/train_labels\.txt: missing; the class of each training frame"):
        data.setup("fit")
    folder = made / "libriphone"
    (folder / "feat" / "train").rename(folder / "feat" / "test")
    (folder / "train_split.txt").rename(folder / "test_split.txt")
    data.setup("predict")
    names = (folder / "test_split.txt").read_text().split()
    assert len(data.test) == len(names) == 24
    assert data.test.frames.dtype == torch.float16
    one = torch.load(folder / "feat" / "test" / f"{names[7]}.pt", weights_only=True)
    assert torch.equal(data.test[7], one.half())
    assert sorted(rows_of(data.predict_dataloader())) == list(range(len(data.test.frames)))


def test_where_files_are_looked_for(tmp_path):
    assert not PhonemeData.has_files(tmp_path)
    write_set(tmp_path / "hw2_phoneme" / "2022" / "libriphone")
    assert PhonemeData.has_files(tmp_path / "hw2_phoneme" / "2022")
    assert PhonemeData(root=str(tmp_path)).locate() == tmp_path / "hw2_phoneme" / "2022"
    PhonemeData.sample(tmp_path / "hw2_phoneme" / "sample")
    assert PhonemeData(root=str(tmp_path)).locate() == tmp_path / "hw2_phoneme" / "2022", "the sample steps back"
    assert PhonemeData(root=str(tmp_path), edition="sample").locate() == tmp_path / "hw2_phoneme" / "sample"
    # a test part alone is enough to predict, and says what is missing to train
    alone = write_set(tmp_path / "alone", [4], "test")
    assert PhonemeData.has_files(alone)
    with pytest.raises(DataError, match=r"alone: no training utterances here \(train_split.txt\)"):
        phonemes(alone)


# mistakes, each in one line that names the file and the mend


def no_test(folder):
    return r"no test utterances here \(test_split.txt\); .* leeml data prepare hw2_phoneme --source FOLDER --split test"


def short_label(folder):
    path = folder / "train_labels.txt"
    path.write_text("".join(line.removesuffix(" 0").removesuffix(" 1").removesuffix(" 2") + "\n" if "train3" in line
                            else line + "\n" for line in path.read_text().splitlines()))  # fmt: skip
    return r"feat/train/train3\.pt: 17 frames, but 16 labels of utterance train3; .*make or copy both again"


def no_features(folder):
    (folder / "feat" / "train" / "train6.pt").unlink()
    return r"feat/train/train6\.pt: missing, .*take the utterance out there"


def no_labels(folder):
    path = folder / "train_labels.txt"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if "train6" not in line))
    return r"train_labels\.txt: no labels of train6, which train_split\.txt names"


def a_class_too_many(folder):
    path = folder / "train_labels.txt"
    path.write_text(path.read_text().replace("train4 ", "train4 4"))
    return r"train_labels\.txt, line 5: utterance train4 has class 4\d at frame 0; expected 0 to 2"


def a_class_no_course_has(folder):
    (folder / "phones.txt").unlink()
    path = folder / "train_labels.txt"
    path.write_text(path.read_text().replace("train4 ", "train4 9000000"))
    return r"train_labels\.txt: utterance train4 has class 9000000\d+; expected 0 to 40.*phones\.txt"


def no_number(folder):
    path = folder / "feat" / "train" / "train1.pt"
    x = torch.load(path, weights_only=True)
    x[5, 3] = torch.nan
    torch.save(x, path)
    return r"train1\.pt: frame 5 has a value that is no finite number; make the features again"


def code(folder):
    class Attack:
        def __reduce__(self):
            return Path.touch, (folder / "pwned",)

    torch.save(Attack(), folder / "feat" / "train" / "train1.pt")
    return r"train1\.pt: holds Python objects, which may run code, and was not opened"


def nothing_said(folder):
    torch.save(torch.zeros(0, 39), folder / "feat" / "train" / "train1.pt")
    return r"train1\.pt: no frames; take the utterance out"


def too_loud(folder):
    torch.save(torch.full((30, 39), 1e6), folder / "feat" / "train" / "train1.pt")
    return r"train1\.pt: a value that is .*too large for float16"


@pytest.mark.parametrize("damage", [short_label, no_features, no_labels, a_class_too_many, a_class_no_course_has,
                                    no_number, code, nothing_said, too_loud])  # fmt: skip
def test_bad_files(tmp_path, damage):
    folder = write_set(tmp_path / "set")
    says = damage(folder)
    with pytest.raises(DataError, match=rf"^{folder}.*{says}") as caught:
        phonemes(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "pwned").exists()
    assert not list((tmp_path / "cache" / "frames").glob("*.part*")), "half a map"


def test_no_test_part(tmp_path):
    with pytest.raises(DataError, match=no_test(write_set(tmp_path))):
        phonemes(tmp_path, "predict")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 4}, "data.window is 4: expected an odd number of frames, or null for whole utterances"),
        ({"window": 0}, "data.window is 0"),
        ({"window": -3}, "data.window is -3"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"split": "speaker"}, "the speakers are not known"),
        ({"folds": 11}, "10 utterances cannot be cut into data.folds = 11 parts"),
    ],
)
def test_wrong_options(tmp_path, options, says):
    with pytest.raises(DataError, match=says):
        phonemes(write_set(tmp_path), **options)


def test_fewer_utterances_than_processes(tmp_path):
    write_set(tmp_path, [4, 7], "test")
    for window in (3, None):
        data = as_rank(phonemes(tmp_path, "predict", window=window), 0, 3)
        with pytest.raises(DataError, match="2 to judge cannot be shared out over 3 processes"):
            data.predict_dataloader()


def test_fetch_says_where_the_files_are(tmp_path):
    with pytest.raises(DataError, match=r"no checksum .* docs/hw2_phoneme\.md"):
        PhonemeData.fetch(tmp_path)
    assert not list(tmp_path.iterdir())
