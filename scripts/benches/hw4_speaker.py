"""HW4: our input pipeline and training step against the course's; levels against logistic regression."""

import contextlib
import io
import math
import random
import tempfile
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from callbacks.compiled import Compiled
from callbacks.warmup import WarmupScheduler
from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from datamodules.hw4_speaker import SpeakerData
from datamodules.speech.packed import pack
from datamodules.speech.speaker_folder import read_mel
from modules.hw4_speaker import SpeakerClassifier
from modules.nets.frame_encoders import TransformerFrames
from scripts.benches.budget import Sample, endless
from scripts.benches.tools import empty_cache, medians
from scripts.cli.summary import collect
from scripts.train import run_cli

CONFIGS = PROJECT / "configs" / "hw4_speaker"
BATCH, SEGMENT = 32, 128  # the course's
ROUNDS = 60  # steps that are timed together
SMALL_FILES = 8_000  # an eighth of the course's
STEPS, FOLDS = 4480, 4  # of the accuracy table
VALIDATIONS = 8  # of its fits: one an epoch would cost a Conformer more than the training
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "second": {"judge_frames": 100},
    "hard": {"judge_frames": 100, "judge_snr": 5.0},
}


def ready(folder: Path, **options: Any) -> SpeakerData:
    """The data, opened for training."""
    data = SpeakerData(dir=str(folder), **({"folds": FOLDS} | options))
    data.setup("fit")
    return data


# the course's code


class CourseRows(Dataset):
    """The course's data set: a file is loaded each time it is asked for, and cut at random."""

    def __init__(self, data: SpeakerData) -> None:
        rows = data.split()[0].train
        self.paths, self.labels = [data.files[row] for row in rows], data.targets[rows].tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        mel = torch.load(self.paths[index])
        if len(mel) > SEGMENT:
            start = random.randint(0, len(mel) - SEGMENT)
            mel = mel[start : start + SEGMENT]
        return mel, self.labels[index]


def course_collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Padded with -20, log 10^-20 as the course's code says."""
    mels, speakers = zip(*batch, strict=True)
    return pad_sequence(list(mels), batch_first=True, padding_value=-20), torch.tensor(speakers)


def course_loader(data: SpeakerData, workers: int) -> DataLoader:
    """The course's training loader."""
    return DataLoader(
        CourseRows(data), BATCH, shuffle=True, drop_last=True, num_workers=workers, collate_fn=course_collate
    )


class CourseNet(nn.Module):
    """The network of the course's code: one Transformer layer of width 80, mean over time, two linear layers."""

    def __init__(self, classes: int, d_model: int = 80) -> None:
        super().__init__()
        self.prenet = nn.Linear(40, d_model)
        self.encoder = nn.TransformerEncoderLayer(d_model=d_model, dim_feedforward=256, nhead=2)
        self.last = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, classes))

    def forward(self, mels: Tensor) -> Tensor:
        """(B, T, 40) -> (B, classes)."""
        out = self.encoder(self.prenet(mels).permute(1, 0, 2)).transpose(0, 1)
        return self.last(out.mean(1))


def course_schedule(step: int, warmup: int = 1000, total: int = 70_000) -> float:
    """Warm-up and half a cosine."""
    if step < warmup:
        return step / warmup
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))))


def sample(data: SpeakerData, module: SpeakerClassifier) -> Sample:
    """The course's loop: a file opened for every stretch, padding that is seen, its schedule of 70,000 steps."""

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        (found,) = module.embeddings(x)
        scores = module.heads[0](found)
        (scores.argmax(1) == y).float().mean().item()
        return F.cross_entropy(scores, y)

    return Sample(course_loader(data, 0), loss, course_schedule)


def course_steps(loader: DataLoader, classes: int) -> float:
    """Seconds of ROUNDS steps of the course's loop, which asks for loss and accuracy after every step."""
    net = CourseNet(classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course_schedule)
    batches = endless(loader)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        x, y = next(batches)
        scores = net(x)
        loss = F.cross_entropy(scores, y)
        accuracy = (scores.argmax(1) == y).float().mean()
        loss.item(), accuracy.item()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


# ours


def simple() -> SpeakerClassifier:
    """The module of simple.yaml."""
    return SpeakerClassifier(partial(torch.optim.AdamW, lr=1e-3), TransformerFrames, hidden=80)


def our_steps(data: SpeakerData) -> float:
    """Seconds of ROUNDS steps with our batches and module in a plain loop."""
    module = simple()
    assert data.facts is not None
    module.expect(data.facts)
    module.configure_model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    batches, right = endless(data.train_dataloader()), torch.zeros((), dtype=torch.int64)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        batch = next(batches)
        (e,) = module.embeddings(batch["x"], batch.get("mask"))
        scores = module.heads[0](e)
        F.cross_entropy(scores, batch["y"]).backward()
        right += (scores.argmax(1) == batch["y"]).sum()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


class Clock(Callback):
    """When each step began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Note the time, on a GPU once every 50 steps only: noting it means waiting."""
        if trainer.strategy.root_device.type == "cuda":
            if trainer.global_step % 50:
                return
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def fit(data: SpeakerData, warmup: int, steps: int, device: str = "cpu", *extra: Callback, **options: Any) -> float:
    """Seconds from one time of the clock to the next, by our module and Trainer, as simple.yaml says."""
    clock = Clock()
    trainer = Trainer(
        max_steps=warmup + steps + 1, max_epochs=-1, limit_val_batches=0, accelerator=device, devices=1,
        callbacks=[clock, WarmupScheduler(warmup=0.0143), *extra], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(simple(), data)
    each = 50 if device == "gpu" else 1
    return float(np.mean(np.diff(clock.times)[warmup // each :])) / each


# speed


def whole_epoch(loader: DataLoader) -> None:
    """All batches of an epoch."""
    for _ in loader:
        pass


def ours_as_floats(loader: DataLoader) -> None:
    """All our batches as the network gets them."""
    for batch in loader:
        batch["x"].float()


def pipeline(folder: Path, repeats: int) -> None:
    """Print utterances/s of the course's loader and ours."""
    data, noisy = ready(folder), ready(folder, train_snr=(0.0, 30.0))
    train = len(data.split()[0].train)
    parts: dict[str, Callable[[], None]] = {
        "course's code, 0 workers": partial(whole_epoch, course_loader(data, 0)),
        "course's code, 2 workers": partial(whole_epoch, course_loader(data, 2)),
        "ours": partial(ours_as_floats, data.train_dataloader()),
        "ours, with noise (boss)": partial(ours_as_floats, noisy.train_dataloader()),
    }
    rates = {name: train / seconds for name, seconds in medians(parts, repeats).items()}
    print(
        f"\nInput pipeline: {train} training utterances, stretches of {SEGMENT} frames, batch {BATCH}; medians of "
        f"{repeats} epochs; files in the system's cache"
    )
    print(f"  {'':<26} {'utterances/s':>12} {'against 0 workers':>18} {'against 2 workers':>18}")
    for name, rate in rates.items():
        against = [rate / rates[f"course's code, {n} workers"] for n in (0, 2)]
        print(f"  {name:<26} {rate:12,.0f} {against[0]:16.1f} x {against[1]:16.1f} x")


def whole_step(folder: Path, repeats: int) -> None:
    """Print steps/s of the course's loop and ours on the CPU."""
    data = ready(folder)
    classes = len(data.speakers)
    parts: dict[str, Callable[[], float]] = {
        "course's code, 0 workers": partial(course_steps, course_loader(data, 0), classes),
        "course's code, 2 workers": partial(course_steps, course_loader(data, 2), classes),
        "ours, bare loop": partial(our_steps, data),
        "ours, Trainer": lambda: ROUNDS * fit(data, 5, ROUNDS),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):  # the parts take turns, the first turn warms up
        for name, part in parts.items():
            seconds = part()
            if turn:
                times[name].append(seconds)
    rates = {name: ROUNDS / median(values) for name, values in times.items()}
    print(
        f"\nTraining, the course's network ({classes} speakers), batch {BATCH}, loading included: medians of {repeats} "
        f"turns of {ROUNDS} steps"
    )
    print(f"  {'':<26} {'steps/s':>12} {'against 0 workers':>18} {'against 2 workers':>18}")
    for name, rate in rates.items():
        against = [rate / rates[f"course's code, {n} workers"] for n in (0, 2)]
        print(f"  {name:<26} {rate:12,.1f} {against[0]:16.2f} x {against[1]:16.2f} x")


def opening(place: Path, repeats: int) -> None:
    """Print how long the map of SMALL_FILES takes to be built and to be opened."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2_000, 40), np.float32)
    files = []
    for number in range(SMALL_FILES):
        path = place / f"uttr-{number:032x}.pt"
        length = int(rng.integers(20, 60))
        first = int(rng.integers(len(noise) - length))
        torch.save(torch.from_numpy(noise[first : first + length].copy()), path)
        files.append(path)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        pack(files, read_mel, "float16")
        seconds.append(time.perf_counter() - start)
    later = median(seconds[1:])
    print(
        f"\nOpening {SMALL_FILES:,} small generated utterances, an eighth of the course's: {seconds[0]:.1f} s on first "
        f"use, {later:.3f} s afterwards\n  (64,000 were not measured: 8 times as much is {8 * later:.2f} s)"
    )


def on_gpu(folder: Path) -> None:
    """Print steps/s of our Trainer on a GPU."""
    data = ready(folder)
    print(f"\nOn the GPU: simple, batch {BATCH}, Trainer, 1,000 steps after 200")
    print(f"  {'':<26} {'steps/s':>12} {'70,000 steps, minutes':>22}")
    variants: dict[str, tuple[list[Callback], dict[str, Any]]] = {
        "eager": ([], {}),
        "compiled": ([Compiled()], {}),
        "bf16": ([], {"precision": "bf16-mixed"}),
        "compiled, bf16": ([Compiled()], {"precision": "bf16-mixed"}),
    }
    for name, (extra, options) in variants.items():
        seconds = fit(data, 200, 1000, "gpu", *extra, **options)
        print(f"  {name:<26} {1 / seconds:12,.0f} {70_000 * seconds / 60:22.1f}")


def speed(root: Path | None, repeats: int) -> None:
    """Print input pipeline, training step and the time of opening."""
    with empty_cache(), tempfile.TemporaryDirectory() as name:
        try:
            folder = SpeakerData(root=str(root) if root else None).locate()
            print(f"data: {folder}")
        except DataError:
            folder = Path(name, "small")
            SpeakerData.sample(folder)
            print("data: generated, as there is none (see leeml data prepare hw4_speaker)")
        if not (folder / "metadata.json").is_file():
            folder = folder / "Dataset"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small batches: two threads wait for each other, long if others compute
        pipeline(folder, repeats)
        torch.set_num_threads(threads)
        whole_step(folder, repeats)
        Path(name, "many").mkdir()
        opening(Path(name, "many"), repeats)
        if torch.cuda.is_available():
            on_gpu(folder)


# accuracy


def moments(loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every band of each utterance (N, 80), and its speaker (N,)."""
    x, y = [], []
    for batch in loader:
        mask = batch.get("mask", torch.ones(batch["x"].shape[:2], dtype=torch.bool))
        for frames, valid in zip(batch["x"].float(), mask, strict=True):
            kept = frames[valid].numpy()
            x.append(np.concatenate([kept.mean(0), kept.std(0)]))
        y.append(batch["y"].numpy())
    return np.stack(x), np.concatenate(y)


def linear(folder: Path) -> dict[str, dict[str, float]]:
    """Accuracy of logistic regression on moments, by the setting it was trained in and the one it is judged in."""
    settings = {name: ready(folder, **options) for name, options in SETTINGS.items()}
    judged = {name: moments(data.val_dataloader()) for name, data in settings.items()}
    found = {}
    for name, data in settings.items():
        x, y = moments(data._judged(data.frames, data.targets, data.split()[0].train))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)
        found[name] = {setting: float(model.score(*part)) for setting, part in judged.items()}
    return found


def judged(level: str, root: Path | None, steps: int, *more: str) -> tuple[dict[str, dict[str, float]], float]:
    """Test scores of a level by setting, and the seconds of the fit: by the command line, as a user would."""
    place = ["--data.root", str(root)] if root else []
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as name, quiet[0], quiet[1]:
        run = Path(name, "run")
        fold = ["--data.folds", str(FOLDS), "--trainer.max_steps", str(steps)]
        start = time.perf_counter()
        run_cli(["fit", "--config", str(CONFIGS / f"{level}.yaml"), "--run_dir", str(run), *place, *fold, *more])
        seconds = time.perf_counter() - start
        found = {}
        for setting, options in SETTINGS.items():
            flags = [part for key, value in options.items() for part in (f"--data.{key}", str(value))]
            found[setting] = collect("test", run_cli(["test", "--run_dir", str(run), *place, *flags]).trainer)
    return found, seconds


def add_flags(parser: ArgumentParser) -> None:
    """Add the flag for a shorter training."""
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"optimizer steps of each level in the accuracy table ({STEPS})"
    )


def accuracy(root: Path | None, levels: list[str], steps: int) -> None:
    """Print accuracy, top-5 and equal error rate of levels and of logistic regression on the same held-out part."""
    with empty_cache():
        folder = SpeakerData(root=str(root) if root else None).locate()
        folder = folder if (folder / "metadata.json").is_file() else folder / "Dataset"
        data = ready(folder)
        train, val = data.split()[0]
        sparse = max(1, steps // len(data.train_dataloader()) // VALIDATIONS)
        hard = SETTINGS["hard"]
        print(
            f"\nAccuracy, {folder}: {len(data.speakers)} speakers, {len(train)} training utterances, {len(val)} held "
            f"out (they choose the checkpoint, every {sparse} epochs); {steps} steps; second: the middle "
            f"{hard['judge_frames']} frames; hard: the same with noise at {hard['judge_snr']:g} dB"
        )
        titles = [title for name in SETTINGS for title in (name, "top-5", "EER")]
        print(f"  {'':<22} " + " ".join(f"{title:>8}" for title in [*titles, "seconds"]))
        start = time.perf_counter()
        rows = linear(folder)
        seconds = (time.perf_counter() - start) / len(rows)
        for name, row in rows.items():
            scores = " ".join(f"{score:8.4f} {'':>17}" for score in row.values())
            print(f"  {f'linear, trained {name}':<22} {scores} {seconds:8.0f}")
        for level in levels:
            found, seconds = judged(level, root, steps, "--trainer.check_val_every_n_epoch", str(sparse))
            cells = [found[s][f"test/{key}"] for s in found for key in ("accuracy", "top5", "equal_error_rate")]
            print(f"  {level:<22} " + " ".join(f"{cell:8.4f}" for cell in cells) + f" {seconds:8.0f}", flush=True)
