"""HW2: our loop and its memory against the course's on the same frames and networks; levels on real speech."""

import contextlib
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from datamodules.hw2_phoneme import PhonemeData
from datamodules.samplers import LengthBucketSampler
from datamodules.speech.libriphone import Utterance, write_layout
from datamodules.speech.packed import Packed, windows
from modules.hw2_phoneme import PhonemeClassifier
from modules.nets.mlp import Activation
from modules.nets.window_mlp import WindowMLP
from scripts import kfold
from scripts.benches.budget import Sample
from scripts.benches.tools import empty_cache, peak_memory, quiet_lightning, resident

CONFIGS = PROJECT / "configs" / "hw2_phoneme"
WINDOW = 11  # frames, 429 numbers: the course's of 2021


class Case(NamedTuple):
    """A network of the course's code, and `steps` of training it that are timed together."""

    hidden: tuple[int, ...]
    activation: Activation
    batch: int
    steps: int


CASES = (Case((256, 256), "relu", 512, 60), Case((1024, 512, 128), "sigmoid", 64, 120))
UTTERANCES, WIDE = 4_200, 21  # of the measurements at LibriPhone's size
BATCHES = 300  # of the measurement of memory
SHARED = ("sa1", "sa2")  # the sentences that every speaker of TIMIT reads


def ready(folder: Path, **options: Any) -> PhonemeData:
    """The data, opened for training."""
    data = PhonemeData(dir=str(folder), **options)
    data.setup("fit")
    return data


# speed


def course_loader(data: PhonemeData, batch: int) -> DataLoader:
    """The course's: a table with n copies of every frame, batches of single frames."""
    assert isinstance(data.frames, Packed)
    rows = torch.from_numpy(data.chosen_folds()[0].train)
    x = windows(data.frames.frames, data.frames.offsets, rows, data.window or 1).flatten(1).float()
    return DataLoader(TensorDataset(x, data.targets[rows]), batch, shuffle=True)


def sample(data: PhonemeData, module: PhonemeClassifier) -> Sample:
    """The course's loop, which counts the right answers of each step."""

    def loss(batch: list[Tensor]) -> Tensor:
        x, y = batch
        (scores,) = module(x.unflatten(1, (data.window or 1, -1)))
        (scores.argmax(1) == y).sum().item()
        return F.cross_entropy(scores, y)

    return Sample(course_loader(data, data.frames_a_step), loss)


def course_loop(loader: DataLoader, case: Case, classes: int) -> None:
    """The course's loop: it asks for the loss and the number of right answers after every step."""
    hidden = WindowMLP(WINDOW * 39, case.hidden, case.activation)
    net = nn.Sequential(hidden, nn.Linear(hidden.out, classes))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    loss_sum = right = 0.0
    for _, (x, y) in zip(range(case.steps), loader, strict=False):
        optimizer.zero_grad()
        scores = net(x)
        loss = F.cross_entropy(scores, y)
        loss.backward()
        optimizer.step()
        right += (scores.argmax(1) == y).sum().item()
        loss_sum += loss.item()


def batches(loader: DataLoader, steps: int) -> None:
    """Go through so many batches of a loader, without a network."""
    for _ in zip(range(steps), loader, strict=False):
        pass


def classifier(case: Case, fused: bool) -> PhonemeClassifier:
    """Our module with the network of a sample."""
    net = partial(WindowMLP, hidden=case.hidden, activation=case.activation)
    return PhonemeClassifier(partial(torch.optim.Adam, lr=1e-4, fused=fused), net)


def our_loop(loader: DataLoader, case: Case, facts: dict[str, Any], fused: bool) -> None:
    """Our batches, network and optimiser in a plain loop."""
    module = classifier(case, fused)
    module.expect(facts)
    module.configure_model()
    optimizer = module.configure_optimizers()
    right = torch.zeros((), dtype=torch.int64)
    for _, batch in zip(range(case.steps), loader, strict=False):
        optimizer.zero_grad()
        (scores,) = module(batch["x"])
        F.cross_entropy(scores, batch["y"]).backward()
        optimizer.step()
        right += (scores.argmax(1) == batch["y"]).sum()


class Clock(Callback):
    """When the first batch of an epoch was asked for, and when its last step was done."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the clock of this epoch."""
        self.seconds = -self._now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop the clock of this epoch."""
        self.seconds += self._now(trainer)

    @staticmethod
    def _now(trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def fit(data: PhonemeData, case: Case, fused: bool, accelerator: str = "cpu", validation: int = 0) -> float:
    """Seconds of `case.steps` steps by our module and Lightning's Trainer; its set-up does not count."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1, limit_train_batches=case.steps, limit_val_batches=validation, num_sanity_val_steps=0,
        accelerator=accelerator, devices=1, callbacks=[clock], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(classifier(case, fused), data)
    return clock.seconds


def timed(part: Callable[[], None]) -> float:
    """Run a function once; returns the seconds that it took."""
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def training(folder: Path, case: Case, repeats: int) -> None:
    """Print frames/s of the course's loop and of ours."""
    data = ready(folder, window=WINDOW, batch_size=case.batch)
    assert data.facts is not None
    plain, rows = course_loader(data, case.batch), data.split()[0].train
    loader, classes = data.train_dataloader(), len(data.names)
    parts: dict[str, Callable[[], float]] = {
        "the course's loop": partial(timed, partial(course_loop, plain, case, classes)),
        "ours, bare loop": partial(timed, partial(our_loop, loader, case, data.facts, False)),
        "ours, Trainer": partial(fit, data, case, False),
        "ours, fused Adam, bare": partial(timed, partial(our_loop, loader, case, data.facts, True)),
        "ours, fused Adam, Trainer": partial(fit, data, case, True),
        "the course's batches alone": partial(timed, partial(batches, plain, case.steps)),
        "our batches alone": partial(timed, partial(batches, loader, case.steps)),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):  # the parts take turns, the first turn warms up
        for name, part in parts.items():
            seconds = part()
            if turn:
                times[name].append(seconds)
    rates = {name: case.batch * case.steps / median(values) for name, values in times.items()}
    widths = "-".join(map(str, (39 * WINDOW, *case.hidden)))
    print(
        f"\nTraining {widths}, {case.activation}, batch {case.batch}: {len(rows)} frames, medians of {repeats} turns "
        f"of {case.steps} steps"
    )
    print(f"  {'':<26} {'frames/s':>10} {'against the course':>19}")
    for name, rate in rates.items():
        against = rate / rates["the course's batches alone" if "alone" in name else "the course's loop"]
        print(f"  {name:<26} {rate:10,.0f} {against:17.1f} x")


# padding


def spoken_lengths() -> np.ndarray:
    """Frames of utterances as long as the 24 of LibriPhone that we have seen: 2.6 million together."""
    return np.random.default_rng(0).integers(300, 939, UTTERANCES)


def padding(lengths: dict[str, np.ndarray]) -> None:
    """Print which share of our batches of whole utterances is padding, and of batches of as many in random order."""
    print("\nPadding of whole utterances, share of all frames in batches; mean of 5 epochs")
    print(f"  {'':<34} {'frames a batch':>14} {'batches':>8} {'ours':>7} {'random order':>13}")
    for name, frames in lengths.items():
        for size in (4_000, 8_000):
            sampler = LengthBucketSampler(np.arange(len(frames)), frames, size)
            ours: list[float] = []
            plain: list[float] = []
            for epoch in range(5):
                sampler.set_epoch(epoch)
                taken = [rows.numpy() for rows in sampler]
                order = np.random.default_rng(epoch).permutation(len(frames))
                shuffled = np.split(order, np.cumsum([len(batch) for batch in taken])[:-1])
                for shares, parts in ((ours, taken), (plain, shuffled)):
                    shares.append(1 - frames.sum() / sum(len(part) * frames[part].max() for part in parts))
            print(f"  {name:<34} {size:14,} {len(sampler):8,} {np.mean(ours):7.1%} {np.mean(plain):13.1%}")


# LibriPhone's size


def write_large(folder: Path, share: float = 1.0) -> None:
    """A generated set of LibriPhone's size, or a share of it, in its layout."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4_000, 39), np.float32)

    def utterances() -> Iterator[Utterance]:
        for number, length in enumerate(spoken_lengths()[: round(UTTERANCES * share)].tolist()):
            first = int(rng.integers(len(noise) - length))
            yield Utterance(f"{number:05d}", noise[first : first + length], rng.integers(41, size=length))

    write_layout(folder, "train", utterances(), [str(number) for number in range(41)])


def fit_memory(folder: str) -> None:
    """Run in a process of its own: training and validation as by `leeml fit`, and what memory it took, as JSON."""
    quiet_lightning()
    before = resident()
    data = ready(Path(folder), window=WIDE)
    built = resident()
    fit(data, CASES[0]._replace(steps=BATCHES), False, validation=20)
    print(json.dumps({"before": before, "built": built, "after": resident(), "peak": peak_memory()}))


def memory(folder: Path) -> None:
    """Print what training on 2.6 million frames keeps in memory."""
    if not Path("/proc/self/smaps").is_file():
        print("\nMemory: left out, it needs Linux's /proc/self/smaps")
        return
    code = f"from scripts.benches.hw2_phoneme import fit_memory; fit_memory({str(folder)!r})"
    count = int(spoken_lengths().sum())
    print(
        f"\nMemory: fresh processes, {count:,} generated frames, window {WIDE}; {BATCHES} batches of training, 20 of "
        f"validation,\n  in MB; the course's table of windows alone would take {count * WIDE * 39 * 4 / 1e6:,.0f}"
    )
    print(f"  {'':<32} {'anonymous':>9} {'frame map':>9} {'other files':>12} {'together':>9}")
    for title in ("first run, which builds the map", "later run"):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        print(f"  {title}" + (f": failed with status {done.returncode}" if done.returncode else ""))
        if done.returncode:
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        for name, key in {"after imports": "before", "data open": "built", "after training": "after"}.items():
            a, m, f = (found[key][kind] for kind in ("anonymous", "map", "files"))
            print(f"    {name:<30} {a:9,.0f} {m:9,.0f} {f:12,.0f} {a + m + f:9,.0f}")
        beyond = found["peak"] - sum(found["before"].values())
        print(f"    {'peak':<30} {'':32} {found['peak']:9,.0f}, {beyond:,.0f} of it beyond the imports")
    print("  the pages of the map are the system's cache, which takes them back at need")


def on_gpu(folder: Path, repeats: int) -> None:
    """Print frames/s of our Trainer on a GPU, frames kept there."""
    print(f"\nOn the GPU: {spoken_lengths().sum():,} generated frames, window {WIDE}, medians of {repeats} turns")
    print(f"  {'hidden layers':<24} {'batch':>6} {'frames/s':>12}")
    for hidden in ((256, 256), (1024, 1024, 1024)):
        for batch in (512, 4_096):
            case = Case(hidden, "relu", batch, 500)
            data = ready(folder, window=WIDE, batch_size=batch)
            fit(data, case, True, "gpu")
            seconds = median(fit(data, case, True, "gpu") for _ in range(repeats))
            print(f"  {'-'.join(map(str, hidden)):<24} {batch:6,} {batch * case.steps / seconds:12,.0f}")


def speed(root: Path | None, repeats: int) -> None:
    """Print training, padding and memory."""
    with empty_cache(), tempfile.TemporaryDirectory() as name:
        try:
            folder = PhonemeData(root=str(root) if root else None).locate()
            print(f"data: {folder}")
        except DataError:
            folder = Path(name, "small")
            PhonemeData.sample(folder)
            print("data: generated, as there is none (see leeml data prepare hw2_phoneme)")
        for case in CASES:
            training(folder, case, repeats)
        data = ready(folder, window=None)
        assert isinstance(data.frames, Packed)
        padding({"the data": data.frames.lengths, "generated, as long as LibriPhone": spoken_lengths()})
        large = Path(name, "large")
        write_large(large)
        memory(large)
        if torch.cuda.is_available():
            on_gpu(large, repeats)


# accuracy


def out_of_fold(level: str, root: Path | None, *more: str) -> list[dict[str, str]]:
    """Frames (utterance:frame, fold, true, predicted) of a level's config, cross-validated by `leeml kfold`."""
    with tempfile.TemporaryDirectory() as folder:
        args = ["kfold", "--config", str(CONFIGS / f"{level}.yaml"), "--run_dir", f"{folder}/run", *more]
        args += ["--data.root", str(root)] if root else []
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kfold.main([*args, "--folds", "5", "--data.seed", "0"])
        with open(f"{folder}/run/out_of_fold.csv", newline="") as file:
            return list(csv.DictReader(file))


def accuracy(root: Path | None, levels: list[str]) -> None:
    """Print frame accuracy of our levels over the same five folds, by speaker where they are known."""
    data = PhonemeData(root=str(root) if root else None)
    data.setup("fit")
    assert data.facts is not None
    assert data.part is not None
    what = f"{len(set(data.part.speakers))} speakers" if data.part.speakers else f"{len(data.part.names)} utterances"
    print(
        f"\nAccuracy, {data.locate()}: {len(data.targets)} frames; 5 folds of {what}, last weights, nothing chosen on "
        "held-out frames"
    )
    print(f"  {'':<16} {'accuracy':>18} {'without sa1, sa2':>18} {'without silence':>18} {'seconds':>8}")
    for level in levels:
        start = time.perf_counter()
        frames = out_of_fold(level, root)
        seconds = time.perf_counter() - start
        fold, true, said = (np.array([int(frame[key]) for frame in frames]) for key in ("fold", "true", "predicted"))
        sentences = [frame["id"].rsplit(":", 1)[0].rsplit("_", 1)[-1] for frame in frames]
        kept = {"all": true >= 0, "own": ~np.isin(sentences, SHARED), "heard": true != data.facts["silence"]}
        cells = []
        for chosen in kept.values():
            by_fold = [float(np.mean((true == said)[chosen & (fold == k)])) for k in range(5)]
            cells.append(f"{np.mean(by_fold):.4f} +- {np.std(by_fold, ddof=1):.4f}")
        print(f"  {level:<16} {cells[0]:>18} {cells[1]:>18} {cells[2]:>18} {seconds:8.0f}")
    print("  +- is the deviation over folds; with as few speakers as in a sample of TIMIT, a figure moves by points")
