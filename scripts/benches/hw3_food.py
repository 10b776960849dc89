"""HW3: our input pipeline and training step against the course's, and levels against logistic regression."""

import contextlib
import io
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from joblib.externals.loky import get_reusable_executor
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, Trainer
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from callbacks.compiled import Compiled
from datamodules.files.places import PROJECT
from datamodules.hw3_food import FoodData
from modules.hw3_food import FoodClassifier
from modules.nets.cnn import CNN
from modules.nets.resnet import ResNet
from scripts.benches.budget import Sample
from scripts.benches.tools import empty_cache, medians, peak_memory, resident
from scripts.cli.summary import collect
from scripts.train import run_cli

CONFIGS = PROJECT / "configs" / "hw3_food"
FIRST = "ours, first epoch"  # with validation, because the map is built for both
BATCH, SIDE = 64, 128  # the course's of 2022 and 2023
LARGE, LARGE_FILES = 512, (7 * BATCH, BATCH)  # side of the course's own files; so many training and validation files
MEASURES = ("channels_last", "fused Adam", "bf16 autocast", "torch.compile")
CACHED = 10_000  # images in the measurement of memory, as in 2023


def editions(root: Path | None) -> list[Path]:
    """Folders with images below the data root."""
    data = FoodData(root=str(root) if root else None)
    base = data.root / data.homework
    several = [] if FoodData.has_files(base) else [p for p in sorted(base.glob("*")) if FoodData.has_files(p)]
    return several or [data.locate()]


def ready(folder: Path, **options: Any) -> FoodData:
    """The data after decoding, scaled to 0 ... 1 as the course's code does it."""
    data = FoodData(dir=str(folder), normalise=False, batch_size=BATCH, image_size=SIDE, **options)
    data.setup("fit")
    return data


# input pipeline


class CourseRows(Dataset):
    """The course's data set: every image is opened and transformed each time it is asked for."""

    def __init__(self, data: FoodData, transform: Callable[[Any], Tensor]) -> None:
        rows = data.split()[0].train
        self.paths, self.labels = [data.paths[row] for row in rows], data.targets[rows].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[index])), self.labels[index]


def sample(data: FoodData, module: FoodClassifier) -> Sample:
    """The course's loop: files opened in every epoch, in the training process; accuracy asked for after every step."""
    size = (data.image_size, data.image_size)
    rows = CourseRows(data, transforms.Compose([transforms.Resize(size), transforms.ToTensor()]))

    def loss(batch: list[Tensor]) -> Tensor:
        x, y = batch
        scores = module.net(x)
        (scores.argmax(1) == y).float().mean().item()
        return F.cross_entropy(scores, y)

    return Sample(DataLoader(rows, batch_size=data.batch_size, shuffle=True), loss)


def course_epoch(rows: CourseRows, workers: int) -> None:
    """All batches of an epoch as the course's code makes them."""
    for _ in DataLoader(rows, batch_size=BATCH, shuffle=True, num_workers=workers):
        pass


def our_epoch(loader: DataLoader, module: FoodClassifier | None) -> None:
    """All our batches; with a module brought to what the course's loader gives, floats from 0 to 1."""
    for batch in loader:
        if module is not None:
            module.normalised(batch["x"])


def first_epoch(folder: Path, module: FoodClassifier) -> None:
    """Our first epoch and its validation on files never seen before, all set-up included."""
    get_reusable_executor().shutdown(kill_workers=True)  # joblib keeps its processes, but a run has to start them
    with empty_cache():
        data = ready(folder)
        our_epoch(data.train_dataloader(), module)
        our_epoch(data.val_dataloader(), module)


def strong_augment() -> list[nn.Module]:
    """The transforms of configs/hw3_food/strong.yaml."""
    config = yaml.safe_load((CONFIGS / "strong.yaml").read_text())
    entries = config["data"]["init_args"]["augment"]
    return [pkgutil.resolve_name(entry["class_path"])(**entry.get("init_args", {})) for entry in entries]


def pipeline(folder: Path, repeats: int, what: str) -> None:
    """Print images/s of the course's loader and ours, without and with augmentation."""
    augment = strong_augment()
    data = ready(folder)
    assert data.facts is not None
    module = FoodClassifier()
    module.expect(data.facts)
    module.configure_model()
    to_tensor = transforms.ToTensor()
    plain = CourseRows(data, transforms.Compose([transforms.Resize((SIDE, SIDE)), to_tensor]))
    varied = CourseRows(data, transforms.Compose([*augment, to_tensor]))
    alone, beside = (ready(folder, augment=augment, workers=n).train_dataloader() for n in (0, 2))
    groups: dict[str, dict[str, Callable[[], None]]] = {
        "without augmentation": {
            "course's code, 0 workers": partial(course_epoch, plain, 0),
            "course's code, 2 workers": partial(course_epoch, plain, 2),
            FIRST: partial(first_epoch, folder, module),
            "ours, later epochs": partial(our_epoch, data.train_dataloader(), module),
            "ours, uint8 for a GPU": partial(our_epoch, data.train_dataloader(), None),
        },
        "augmented as strong.yaml": {
            "course's code, 0 workers": partial(course_epoch, varied, 0),
            "course's code, 2 workers": partial(course_epoch, varied, 2),
            "ours, 0 workers": partial(our_epoch, alone, module),
            "ours, 2 workers": partial(our_epoch, beside, module),
        },
    }
    print(
        f"\nInput pipeline: {len(plain)} training images, {what}; batch {BATCH}, 1 thread, medians of {repeats} "
        "turns; files in the system's cache; our first epoch builds the map, its validation is counted in"
    )
    for title, parts in groups.items():
        seconds = medians(parts, repeats)
        rates = {name: len(data.paths if name == FIRST else plain) / value for name, value in seconds.items()}
        print(f"  {title:<26} {'images/s':>9} {'against 0 workers':>18} {'against 2 workers':>18}")
        for name, rate in rates.items():
            against = [rate / rates[f"course's code, {n} workers"] for n in (0, 2)]
            print(f"    {name:<24} {rate:9,.0f} {against[0]:16.1f} x {against[1]:16.1f} x")


def write_large(folder: Path, images: np.ndarray) -> None:
    """Files as large as the course's, named as its files: `images` (N, S, S, 3) magnified, with grain of a camera."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 7, (2 * LARGE, 2 * LARGE, 3)).astype(np.int16)
    for part, count in zip(("training", "validation"), LARGE_FILES, strict=True):
        (folder / part).mkdir()
        for number in range(count):
            image = Image.fromarray(images[rng.integers(len(images))])
            pixels = np.asarray(image.resize((LARGE, LARGE), Image.Resampling.BICUBIC), np.int16)
            top, left = rng.integers(LARGE, size=2)
            pixels = (pixels + grain[top : top + LARGE, left : left + LARGE]).clip(0, 255)
            name = folder / part / f"{number % 11}_{number // 11}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(name, quality=90)


# training step


def train_step(
    net: nn.Module, use: Collection[str], batch: int, device: torch.device, repeat: int
) -> Callable[[], None]:
    """`repeat` steps of Adam on a batch of images of 128 pixels that is on the device already; `use`: of MEASURES."""
    layout = torch.channels_last if "channels_last" in use else torch.contiguous_format
    net = net.to(device).to(memory_format=layout)
    x = torch.rand(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=layout)
    y = torch.randint(11, (batch,), device=device)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4, weight_decay=1e-5, fused="fused Adam" in use)
    forward = torch.compile(net) if "torch.compile" in use else net

    def steps() -> None:
        for _ in range(repeat):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled="bf16 autocast" in use):
                loss = F.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return steps


def knows_bf16() -> bool:
    """Whether the device multiplies bf16 itself."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo")
    return info.is_file() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(info.read_text().split())


def why_not_compiled() -> str | None:
    """What torch.compile says where it cannot work, such as for want of a C++ compiler."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device="cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:  # every backend raises its own
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


class Clock(Callback):
    """When each training step began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Note the time, once the device has done its work."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def our_step(folder: Path, warmup: int, count: int, use: Collection[str]) -> float:
    """Median seconds from one step to the next with our module, data and Lightning's Trainer, as simple.yaml says."""
    clock = Clock()
    module = FoodClassifier(partial(torch.optim.Adam, lr=3e-4, weight_decay=1e-5), net=CNN)
    trainer = Trainer(
        max_steps=warmup + count + 1, max_epochs=-1, gradient_clip_val=10.0, devices=1, limit_val_batches=0,
        precision="bf16-mixed" if "bf16 autocast" in use else "32-true",
        callbacks=[clock, Compiled()] if "torch.compile" in use else [clock],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, ready(folder))
    return median(np.diff(clock.times)[warmup:].tolist())


def training_step(folder: Path, repeats: int) -> None:
    """Print the time of a step of the course's CNN, plain and with each measure, and of ours."""
    cuda, bf16, broken = torch.cuda.is_available(), knows_bf16(), why_not_compiled()
    repeat = 20 if cuda else 1
    left_out = set() if bf16 else {"bf16 autocast"}
    left_out |= set() if broken is None else {"torch.compile"}
    every = [name for name in MEASURES if name not in left_out]
    variants = {"plain: fp32, NCHW, Adam": [], **{f"+ {name}": [name] for name in every}, "+ all of them": every}
    new = partial(train_step, batch=BATCH, device=torch.device("cuda" if cuda else "cpu"), repeat=repeat)
    seconds = medians({name: new(CNN(11), use) for name, use in variants.items()}, repeats)
    ours = "ours, gpu.yaml" if cuda else "ours, fp32"
    use = every if cuda else []
    seconds[ours] = repeat * our_step(folder, repeat, repeat * repeats, use)
    base = seconds["plain: fp32, NCHW, Adam"]
    print(f"\nTraining step: the course's CNN, batch {BATCH}, {SIDE} px, medians of {repeats} turns of {repeat} steps")
    print(f"  {'':<26} {'ms a step':>9} {'images/s':>9} {'against plain':>14}")
    for name, value in seconds.items():
        print(f"  {name:<26} {1000 * value / repeat:9.1f} {BATCH * repeat / value:9,.0f} {base / value:12.2f} x")
    print("  ours: FoodClassifier and Trainer on the first data above, clipping and loading included")
    if not bf16:
        print("  left out: bf16 autocast, the device has no bf16 arithmetic (CPU flags avx512_bf16, amx_bf16)")
    if broken is not None:
        print(f"  left out: torch.compile, {broken}")


def resnet_on_gpu(repeats: int, batch: int = 256, repeat: int = 20) -> None:
    """Print images/s and the share of the GPU's peak (MFU) of ResNet-18 with everything on."""
    device, net = torch.device("cuda"), ResNet(11)
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, SIDE, SIDE)).sum().backward()
    net.zero_grad()
    step = train_step(net, MEASURES, batch, device, repeat)
    rate = batch * repeat / medians({"": step}, repeats)[""]
    peak = get_available_flops(device, torch.bfloat16)
    share = f"MFU {rate * counter.get_total_flops() / peak:.1%} of {peak / 1e12:.0f} TFLOP/s" if peak else "MFU unknown"
    print(f"\nResNet-18, batch {batch}, {SIDE} px, bf16, channels_last, compiled: {rate:,.0f} images/s, {share}")


# memory


def epoch_memory(folder: str) -> None:
    """Run in a process of its own: an epoch of batches, and what memory it took, as JSON."""
    before = resident()
    data = ready(Path(folder))
    assert data.facts is not None
    module = FoodClassifier(net=CNN)
    module.expect(data.facts)
    module.configure_model()
    built = resident()
    our_epoch(data.train_dataloader(), module)
    print(json.dumps({"before": before, "built": built, "after": resident(), "peak": peak_memory()}))


def memory() -> None:
    """Print what an epoch over a cache of 10,000 images keeps in memory."""
    if not Path("/proc/self/smaps").is_file():
        print("\nMemory: left out, it needs Linux's /proc/self/smaps")
        return
    one = io.BytesIO()
    Image.new("RGB", (32, 32), "tomato").save(one, "jpeg")
    with tempfile.TemporaryDirectory() as folder, empty_cache():
        for part, count in {"training": CACHED, "validation": 11}.items():
            Path(folder, part).mkdir()
            for number in range(count):
                Path(folder, part, f"{number % 11}_{number // 11}.jpg").write_bytes(one.getvalue())
        ready(Path(folder))
        code = f"from scripts.benches.hw3_food import epoch_memory; epoch_memory({folder!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"\nMemory: a fresh process, one epoch over a cache of {CACHED:,} images of {SIDE} px, in MB")
    print(f"  {'':<26} {'anonymous':>9} {'image map':>9} {'other files':>12}")
    for name, key in {"after imports": "before", "data and CNN ready": "built", "after the epoch": "after"}.items():
        now = found[key]
        print(f"  {name:<26} {now['anonymous']:9,.0f} {now['map']:9,.0f} {now['files']:12,.0f}")
    print(f"  peak {found['peak']:,.0f}; the pages of the map are the system's cache, which takes them back at need")


def speed(root: Path | None, repeats: int) -> None:
    """Print input pipeline, training step and memory."""
    folder = editions(root)[0]
    with empty_cache(), tempfile.TemporaryDirectory() as name:
        large, data, threads = Path(name), ready(folder), torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: on single images two wait for each other, long if others compute
        pipeline(folder, repeats, "the files as they are")
        write_large(large, data.pictures.images)
        kilobytes = median(path.stat().st_size for path in large.rglob("*.jpg")) / 1000
        pipeline(large, repeats, f"generated files of {LARGE} px, {kilobytes:.0f} KB")
        torch.set_num_threads(threads)
        training_step(folder, repeats)
    if torch.cuda.is_available():
        resnet_on_gpu(repeats)
    memory()


# accuracy


def plain_features(images: np.ndarray) -> np.ndarray:
    """Of images (N, S, S, 3): 16 x 16 pixels and a histogram of 16 bins for each channel, (N, 816)."""
    out = []
    for image in images:
        small = F.adaptive_avg_pool2d(torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), 16)
        bins = np.bincount((image // 16 + np.arange(0, 48, 16, dtype=np.uint8)).ravel(), minlength=48)
        out.append(np.concatenate([small.flatten().numpy() / 255, bins / image[..., 0].size]))
    return np.stack(out)


def fitted(level: str, folder: Path, *more: str) -> tuple[float, int]:
    """Best validation accuracy of a level's config, and its epochs, by `leeml fit`."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        args = ["--config", str(CONFIGS / f"{level}.yaml"), "--run_dir", f"{name}/run", "--data.dir", str(folder)]
        cli = run_cli(["fit", *args, *more])
        return collect("fit", cli.trainer)["best val/accuracy"], cli.trainer.current_epoch


def accuracy(root: Path | None, levels: list[str]) -> None:
    """Print validation accuracy on the same split: logistic regression on colours and coarse pixels, and our levels."""
    for folder in editions(root):
        data = ready(folder)
        train, val = data.split()[0]
        y = data.targets.numpy()
        print(f"\nAccuracy, {folder.name}: {len(train)} training images, {len(val)} held out (they choose the epoch)")
        print(f"  {'':<22} {'accuracy':>8} {'epochs':>7} {'minutes':>8}")
        start = time.perf_counter()
        x = plain_features(data.pictures.images)
        chain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        model = GridSearchCV(chain, {"logisticregression__C": [1e-4, 1e-3, 1e-2]}, cv=3)
        score = model.fit(x[train], y[train]).score(x[val], y[val])
        print(f"  {'logistic regression':<22} {score:8.4f} {'':>7} {(time.perf_counter() - start) / 60:8.1f}")
        for level in levels:
            start = time.perf_counter()
            best, epochs = fitted(level, folder)
            print(f"  {level:<22} {best:8.4f} {epochs:7} {(time.perf_counter() - start) / 60:8.1f}")
