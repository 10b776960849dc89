"""datamodules/samplers.py: every row once an epoch, the same rows on any number of ranks, exact resume."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.samplers import LengthBucketSampler, MemberBatchSampler, ResumableLoader, length_buckets

SIZES = {"length": st.integers(1, 60), "batch_size": st.integers(1, 25), "seed": st.integers(0, 2**40)}


def epoch_of(sampler: MemberBatchSampler, epoch: int = 0) -> list[np.ndarray]:
    sampler.set_epoch(epoch)
    return [batch.numpy() for batch in sampler]


def folds_of(length: int, members: int) -> list[np.ndarray]:
    """Rows of each member: other numbers for each, so that they cannot be mixed up."""
    return [np.arange(length) * 3 + 1000 * m for m in range(members)]


@given(**SIZES, members=st.integers(1, 4), epoch=st.integers(0, 5))
def test_every_member_sees_each_of_its_rows_once_an_epoch(
    length: int, batch_size: int, seed: int, members: int, epoch: int
) -> None:
    rows = folds_of(length, members)
    sampler = MemberBatchSampler(rows, batch_size, seed)
    batches = epoch_of(sampler, epoch)
    assert len(batches) == len(sampler) == -(-length // batch_size)
    assert [b.shape for b in batches[:-1]] == [(members, batch_size)] * (len(batches) - 1)
    for member, seen in enumerate(np.hstack(batches)):
        np.testing.assert_array_equal(np.sort(seen), rows[member])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), batch_size=st.integers(1, 25))
def test_folds_of_unequal_size_take_the_same_number_of_steps(lengths: list[int], batch_size: int) -> None:
    seen = np.hstack(epoch_of(MemberBatchSampler([np.arange(n) for n in lengths], batch_size)))
    assert seen.shape == (len(lengths), max(lengths))
    for n, rows in zip(lengths, seen, strict=True):
        times = np.bincount(rows, minlength=n)
        assert len(times) == n
        assert times.min() >= 1
        assert times.max() - times.min() <= 1


@given(**SIZES, world=st.integers(1, 8), members=st.integers(1, 3), epoch=st.integers(0, 3))
def test_ranks_share_the_batches_of_one_process(
    length: int, batch_size: int, seed: int, world: int, members: int, epoch: int
) -> None:
    rows = folds_of(length, members)
    whole = epoch_of(MemberBatchSampler(rows, batch_size, seed), epoch)
    shares = [epoch_of(MemberBatchSampler(rows, batch_size, seed, rank, world), epoch) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        widths = [part.shape[1] for part in parts]
        assert max(widths) - min(widths) <= 1
        together = np.hstack(parts)
        for member in range(members):
            assert len(set(together[member])) == batch.shape[1]
            assert set(together[member]) == set(batch[member])


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_order_is_a_function_of_seed_epoch_and_member(seed: int, epoch: int) -> None:
    def orders(seed: int, epoch: int) -> list[list[int]]:
        return np.hstack(epoch_of(MemberBatchSampler([np.arange(50)] * 3, 16, seed), epoch)).tolist()

    here = orders(seed, epoch)
    assert here == orders(seed, epoch)
    others = here + orders(seed, epoch + 1) + orders(seed + 1, epoch)
    assert len(set(map(tuple, others))) == 9  # of 50! orders, no two are the same


def test_order_of_an_epoch_does_not_depend_on_what_was_drawn_before() -> None:
    sampler = MemberBatchSampler([np.arange(50)], 16, seed=3)
    epoch_of(sampler, 0)
    torch.manual_seed(1)
    np.random.seed(1)
    later = epoch_of(sampler, 5)
    np.testing.assert_array_equal(
        np.hstack(later), np.hstack(epoch_of(MemberBatchSampler([np.arange(50)], 16, seed=3), 5))
    )


class Numbers(Dataset):
    """Gives back the row numbers it is asked for."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, rows: Tensor) -> list[int]:
        return rows.flatten().tolist()


def loader(length: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1) -> ResumableLoader:
    return ResumableLoader(Numbers(), MemberBatchSampler([np.arange(length)], batch_size, seed, rank, world))


def take(source: ResumableLoader, epoch: int, count: int | None = None) -> list[list[int]]:
    """The next batches of an epoch, as Lightning would ask for them."""
    source.sampler.set_epoch(epoch)
    batches = []
    for batch in source:
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


@settings(max_examples=50)
@given(**SIZES, epoch=st.integers(0, 3), stop=st.integers(0, 60), world=st.integers(1, 3))
def test_resumed_epoch_goes_on_with_the_very_next_batch(
    length: int, batch_size: int, seed: int, epoch: int, stop: int, world: int
) -> None:
    options = (length, batch_size, seed, world - 1, world)
    whole, next_epoch = take(loader(*options), epoch), take(loader(*options), epoch + 1)
    stop = min(stop, len(whole))
    stopped = loader(*options)
    given_out = take(stopped, epoch, stop) if stop else []
    assert given_out == whole[:stop]
    state = stopped.state_dict()
    assert state == {"given": stop}

    resumed = loader(*options)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == {"given": stop % len(whole)}  # stopped again before its first batch
    if stop < len(whole):
        assert take(resumed, epoch) == whole[stop:]
    assert take(resumed, epoch + 1) == next_epoch  # and the epoch after it is whole


def test_stopped_twice_in_one_epoch() -> None:
    whole, source = take(loader(20, 3), 2), loader(20, 3)
    take(source, 2, 2)
    second = loader(20, 3)
    second.load_state_dict(source.state_dict())
    assert take(second, 2, 3) == whole[2:5]
    assert second.state_dict() == {"given": 5}
    third = loader(20, 3)
    third.load_state_dict(second.state_dict())
    assert take(third, 2) == whole[5:]


class Recorder(LightningModule):
    """Remembers which rows every step saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: list[int], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch))
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(Callback):
    """Writes a checkpoint after `step` steps, in the hook named `hook`."""

    def __init__(self, path: Path, step: int, hook: str) -> None:
        self.path, self.step, self.hook = path, step, hook

    def _save(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save("batch", trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._save("validation", trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save("epoch", trainer)


def fit(checkpoint: Path | None = None, *callbacks: Callback) -> list[tuple[int, int, list[int]]]:
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=list(callbacks),
    )  # fmt: skip
    module = Recorder()
    trainer.fit(module, loader(10, 4), torch.utils.data.DataLoader(torch.zeros(1)), ckpt_path=checkpoint)  # type: ignore[arg-type]
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("hook", "step"),
    [("batch", 1), ("batch", 3), ("batch", 5), ("validation", 3), ("validation", 6), ("epoch", 3), ("epoch", 6)],
)
def test_trainer_goes_on_where_the_checkpoint_was_written(hook: str, step: int, tmp_path: Path) -> None:
    """Three steps an epoch: after the last batch of one, and after its validation, the next epoch must be whole."""
    path = tmp_path / "x.ckpt"
    whole = fit(None, SaveAt(path, step, hook))
    assert [(epoch, batch) for epoch, batch, _ in whole] == [(e, b) for e in range(3) for b in range(3)]
    assert all(a[2] != b[2] for a, b in pairwise(whole))
    assert fit(path) == whole[step:]


# batches of whole sequences


def padding(lengths: np.ndarray, max_frames: int, world_size: int = 1) -> float:
    batches = [b for r in range(world_size) for b in length_buckets(lengths, max_frames, 0, 0, r, world_size)]
    return 1 - lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches)


SEQUENCES = st.lists(st.integers(1, 20), min_size=1, max_size=40).map(np.array)
PAIRS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=40).map(np.array)


@example(lengths=np.ones(6, int), max_frames=5, world_size=3, seed=0, epoch=0)  # 5 and 1, and no rank may go without
@settings(max_examples=200)
@given(
    lengths=SEQUENCES | PAIRS,
    max_frames=st.integers(0, 150),
    world_size=st.integers(1, 8),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_length_buckets(lengths: np.ndarray, max_frames: int, world_size: int, seed: int, epoch: int) -> None:
    if len(lengths) < world_size:
        with pytest.raises(DataError, match=rf"{len(lengths)} sequences cannot be shared out over {world_size}"):
            length_buckets(lengths, max_frames, seed, epoch, 0, world_size)
        return
    ranks = [length_buckets(lengths, max_frames, seed, epoch, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batch) for batches in ranks for batch in batches)
    together = [np.concatenate(parts) for parts in zip(*ranks, strict=True)]
    assert sorted(np.concatenate(together).tolist()) == list(range(len(lengths)))
    room = max(max_frames, lengths.max() * (2 * world_size - 1) * 1.07)
    assert all(lengths[batch].max() * len(batch) <= room for batch in together)
    again = length_buckets(lengths, max_frames, seed, epoch, 0, world_size)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in ranks[0]]
    assert len(length_buckets(lengths, max_frames, seed + 1, epoch + 1, 0, world_size)) == len(ranks[0])


def test_pairs_are_alike_in_both_sides() -> None:
    """Against batches by the longer side alone, which leave the other side to chance."""
    rng = np.random.default_rng(0)
    first = rng.gamma(4, 4, 20000).astype(int) + 2
    pairs = np.stack([first, (first * rng.lognormal(0, 0.25, len(first))).astype(int) + 1], 1)

    def cells(batches: list[np.ndarray]) -> int:
        return sum(len(batch) * pairs[batch].max(0).sum() for batch in batches)

    both, longer = length_buckets(pairs, 4096), length_buckets(pairs.max(1), 4096)
    assert 1 - pairs.sum() / cells(both) < 0.1 < 1 - pairs.sum() / cells(longer)
    assert len(both) < 1.05 * len(longer)


def test_ranks_share_the_buckets_of_one_process() -> None:
    lengths = np.random.default_rng(0).integers(100, 700, 300)
    one = length_buckets(lengths, 6000, 3, 5)
    two = [length_buckets(lengths, 6000, 3, 5, rank, 2) for rank in range(2)]
    assert [set(a) | set(b) for a, b in zip(*two, strict=True)] == [set(batch) for batch in one]


def test_company_differs_between_epochs_and_seeds() -> None:
    lengths = np.random.default_rng(0).integers(100, 700, 300)
    orders = [length_buckets(lengths, 6000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    sets = [{frozenset(batch.tolist()) for batch in batches} for batches in orders]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert len(sets[a] & sets[b]) < len(sets[a]) / 2  # other company, not only another order
    longest = [int(lengths[batch].max()) for batch in orders[0]]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("world_size", [1, 2])
def test_hardly_padded(world_size: int) -> None:
    rng = np.random.default_rng(0)
    libriphone = rng.normal(620, 190, 4286).clip(139, 998).astype(int)
    timit = rng.integers(100, 701, 4620)
    for lengths, max_frames in ((libriphone, 16000), (libriphone, 64000), (timit, 8000), (timit, 32000)):
        assert padding(lengths, max_frames, world_size) < 0.05
        batches = length_buckets(lengths, max_frames)
        assert len(batches) < 1.2 * lengths.sum() / max_frames + 2  # and they are full


def test_hardly_padded_on_the_real_sample(real_data: Callable[[str], Path]) -> None:
    with ZipFile(real_data("hw2_phoneme") / "timit_sample_13spk.zip") as zipped:
        sizes = [info.file_size for info in zipped.infolist() if info.filename.endswith(".wav")]
    lengths = (np.array(sizes) - 44) // 320
    assert padding(lengths, 4000) < 0.1


def test_a_bucket_sampler_goes_on_where_it_stopped() -> None:
    sequences, lengths = np.arange(50) + 100, np.random.default_rng(0).integers(1, 30, 50)
    sampler = LengthBucketSampler(sequences, lengths, 90, seed=4)
    sampler.set_epoch(3)
    whole = list(sampler)
    assert len(whole) == len(sampler) > 5
    assert sorted(torch.cat(whole).tolist()) == sequences.tolist()
    sampler.start = 5
    assert [rows.tolist() for rows in sampler] == [rows.tolist() for rows in whole[5:]]
    assert len(list(sampler)) == len(sampler)
