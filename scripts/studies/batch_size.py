"""Small and large batches: seconds, accuracy and sharpness after equally many epochs and updates, and rescaled nets."""

import time
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.curvature import curvature, hessian_product
from datamodules.hw2_phoneme import PhonemeData
from modules.hw2_phoneme import PhonemeClassifier
from modules.nets.window_mlp import WindowMLP
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, across, mean_and_spread


@dataclass(frozen=True)
class Settings:
    """HW2's net and its batches.

    Args:
        small, large: Windows in a batch.
        used: Windows to train on, of which the large batch is a quarter.
        judged: Held-out windows, at most.
        epochs: Of the small batch, and of the large one where they are equal.
        window: Frames in a window.
        hidden: Widths of the net.
        rate: Adam's.
        factor: By which the first layer of a trained net is multiplied, and the second divided.
        timed_sizes, timed: Windows in an update that is timed, and how often.
    """

    small: int = 10
    large: int = 125
    used: int = 500
    judged: int = 2000
    epochs: int = 30
    window: int = 3
    hidden: tuple[int, ...] = (64, 64)
    rate: float = 1e-3
    factor: float = 30.0
    timed_sizes: tuple[int, ...] = (1, 32, 256, 2048)
    timed: int = 20


class Windows:
    """Windows of HW2's frames in memory: some to train on, others to judge by.

    Args:
        settings, seed, root: As in `run`; the seed draws the windows.
    """

    def __init__(self, settings: Settings, seed: int, root: Path) -> None:
        data = PhonemeData(str(root), seed=seed, window=settings.window, batch_size=settings.used)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        self.x, self.y = batch["x"].float(), batch["y"]
        held = [(part["x"].float(), part["y"]) for part in data.val_dataloader()]
        new, answers = (torch.cat(part) for part in zip(*held, strict=True))
        chosen = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed))[: settings.judged]
        self.new, self.answers = new[chosen], answers[chosen]
        self.facts: dict[str, Any] = data.facts or {}


def classifier(settings: Settings, windows: Windows, seed: int) -> PhonemeClassifier:
    """HW2's module before training."""
    torch.manual_seed(seed)
    module = PhonemeClassifier(
        partial(torch.optim.Adam, lr=settings.rate, fused=True), partial(WindowMLP, hidden=settings.hidden)
    )
    module.expect(windows.facts)
    module.configure_model()
    return module


def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy () of classes y (B,) from windows x (B, ...)."""
    return F.cross_entropy(module(x)[0], y)


def update(optimizer: torch.optim.Optimizer, module: nn.Module, x: Tensor, y: Tensor) -> None:
    """One step on a batch."""
    optimizer.zero_grad()
    loss(module, x, y).backward()
    optimizer.step()


def sharpness(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Largest eigenvalue of the Hessian of the loss on these windows."""
    return curvature(*hessian_product(loss(module, x, y), list(module.parameters())), iterations=20).highest


def after(
    settings: Settings, windows: Windows, seed: int, size: int, updates: int
) -> tuple[PhonemeClassifier, dict[str, float]]:
    """The module after so many updates, and what became of it."""
    module = classifier(settings, windows, seed)
    optimizer: Any = module.configure_optimizers()
    for batch in Examples(windows.x, windows.y, updates, size, seed).train_dataloader():
        update(optimizer, module, batch["x"], batch["y"])
    with torch.no_grad():
        own, new = (
            float((module(x)[0].argmax(1) == y).double().mean())
            for x, y in ((windows.x, windows.y), (windows.new, windows.answers))
        )
        found = {"updates": updates, "loss": float(loss(module, windows.x, windows.y)), "train": own, "new": new}
    return module, found | {"sharpness": sharpness(module, windows.x, windows.y)}


def rescaled(module: PhonemeClassifier, factor: float) -> PhonemeClassifier:
    """The same function by other weights: the first layer times a factor, the next divided by it (Dinh et al. 2017).

    A ReLU lets a positive factor pass.
    """
    module = deepcopy(module)
    first, second = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][:2]
    with torch.no_grad():
        first.weight.mul_(factor)
        assert first.bias is not None
        first.bias.mul_(factor)
        second.weight.div_(factor)
    return module


def seconds_an_update(module: PhonemeClassifier, windows: Windows, size: int, times: int) -> float:
    """Median seconds of one optimizer step on random windows, forward and backward, without the loader."""
    optimizer: Any = module.configure_optimizers()
    drawn = torch.randint(len(windows.y), (size,))
    x, y = windows.x[drawn], windows.y[drawn]
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        update(optimizer, module, x, y)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Seconds; accuracies and sharpness of small batches, and of large ones after as many epochs or updates."""
    windows = Windows(settings, seed, root)
    rows = len(windows.y)
    module = classifier(settings, windows, seed)
    found: Measurements = {"rows": rows, "timed_sizes": list(settings.timed_sizes)}
    found["update"] = [seconds_an_update(module, windows, size, settings.timed) for size in settings.timed_sizes]
    many, few = (settings.epochs * max(1, rows // size) for size in (settings.small, settings.large))
    module, found["small"] = after(settings, windows, seed, settings.small, many)
    _, found["large, as many epochs"] = after(settings, windows, seed, settings.large, few)
    _, found["large, as many updates"] = after(settings, windows, seed, settings.large, many)
    other = rescaled(module, settings.factor)
    with torch.no_grad():
        shares = [net(windows.new)[0].softmax(1) for net in (module, other)]
    found["rescaled"] = sharpness(other, windows.x, windows.y)
    found["apart"] = float((shares[0] - shares[1]).abs().max())
    return found


LARGE = ("large, as many epochs", "large, as many updates")
LESS_ACCURATE = Said("percentage points less accurate", "個百分點的正確率差距")
STATEMENTS = (
    Statement(
        Said(
            "An update on 256 windows takes less than 16 times as long as one on a single window.",
            "用 256 個視窗更新一次，時間不到只用 1 個視窗的 16 倍。",
        ),
        lambda found: found["update"][2] / found["update"][0], 16.0, Said("times as long", "倍的時間"), "ratio",
        "at most",
    ),
    Statement(
        Said(
            "An epoch takes longer with one window in a batch than with 2,048.",
            "一個批次只有 1 個視窗時，跑完一個 epoch 比 2,048 個視窗時久。",
        ),
        lambda found: found["update"][0] / found["update"][3] * found["timed_sizes"][3], 2.0,
        Said("times as long", "倍的時間"), "ratio",
    ),
    Statement(
        Said(
            "After as many epochs the large batch is less accurate on new windows than the small one.",
            "epoch 數相同時，大批次在新資料上的正確率比小批次低。",
        ),
        lambda found: found["small"]["new"] - found[LARGE[0]]["new"], 0.05, LESS_ACCURATE, "share",
    ),
    Statement(
        Said(
            "After as many epochs the large batch ends where the loss is sharper.",
            "epoch 數相同時，大批次停在損失曲面比較陡的地方。",
        ),
        lambda found: found[LARGE[0]]["sharpness"] / found["small"]["sharpness"], 2.0,
        Said("times as sharp", "倍的陡峭程度"), "ratio",
    ),
    Statement(
        Said(
            "Most of it is the number of updates: after as many of them the large batch is at most 5 percentage points "
            "less accurate.",
            "主要是更新次數的關係：更新次數相同時，大批次的正確率最多只低 5 個百分點。",
        ),
        lambda found: found["small"]["new"] - found[LARGE[1]]["new"], 0.05, LESS_ACCURATE, "share", "at most",
    ),
    Statement(
        Said(
            "After as many updates, too, the large batch ends where the loss is sharper.",
            "更新次數相同時，大批次也停在損失曲面比較陡的地方。",
        ),
        lambda found: found[LARGE[1]]["sharpness"] / found["small"]["sharpness"], 2.0,
        Said("times as sharp", "倍的陡峭程度"), "ratio",
    ),
    Statement(
        Said(
            "Sharpness alone says nothing: the same function, with other weights, is more than ten times as sharp.",
            "陡峭本身不代表什麼：同一個函數換一組權重，就陡了十倍以上。",
        ),
        lambda found: found["rescaled"] / found["small"]["sharpness"], 10.0, Said("times as sharp", "倍的陡峭程度"),
        "ratio",
    ),
    Statement(
        Said(
            "That net gives the same probabilities for all new windows.",
            "那個網路對所有新資料給的機率都相同。",
        ),
        lambda found: found["apart"], 1e-4, Said("of difference at most", "的差距（最大）"), kind="exact",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Time by size of batch, and accuracy and sharpness of both sizes."""
    drawn = Figure(figsize=(8, 7.5), layout="constrained")
    (one, epoch), (accuracy, sharp) = drawn.subplots(2, 2)
    first = measurements[0]
    timed = np.array(first["timed_sizes"])
    seconds = across(measurements, "update")
    one.loglog(timed, 1000 * seconds.mean(0), "o-", color="tab:green")
    one.set(title="one update", ylabel="time (ms)")
    epoch.loglog(timed, seconds.mean(0) * first["rows"] / timed, "o-", color="tab:green")
    epoch.set(title=f"an epoch of {first['rows']:,} windows", ylabel="time (s)")
    for axes in (one, epoch):
        axes.set_xlabel("windows in a batch")
        axes.set_xticks(timed, [f"{size:,}" for size in timed])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    kinds = {"small": "small\nbatch", LARGE[0]: "large, as\nmany epochs", LARGE[1]: "large, as\nmany updates"}
    for part, shift, colour, label in (("train", -0.2, "0.75", "training"), ("new", 0.2, "tab:purple", "new windows")):
        values = 100 * np.array([[m[kind][part] for kind in kinds] for m in measurements])
        accuracy.bar(
            np.arange(3) + shift, values.mean(0), 0.38, yerr=values.std(0), capsize=3, color=colour, label=label
        )
    accuracy.set_xticks(range(3), list(kinds.values()))
    accuracy.set(ylabel="accuracy (%)", title="accuracy", ylim=(0, 130))
    accuracy.legend(fontsize=9, ncols=2, loc="upper center")
    tops = np.array([[*(m[kind]["sharpness"] for kind in kinds), m["rescaled"]] for m in measurements])
    sharp.semilogy(range(4), tops.T, "o-", color="tab:blue", alpha=0.3, markersize=3)
    sharp.semilogy(range(4), np.exp(np.log(tops).mean(0)), "D", color="tab:blue")
    sharp.set_xticks(range(4), [*kinds.values(), "small,\nrescaled"], fontsize=9)
    sharp.set(ylabel="largest eigenvalue", title="sharpness of the training loss")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Loss, accuracies and sharpness of each way, and time by size of batch."""
    rows: list[list[Any]] = []
    for kind in ("small", *LARGE):
        keys = ("updates", "loss", "train", "new", "sharpness")
        rows.append([kind, *(mean_and_spread([m[kind][key] for m in measurements]) for key in keys)])
    rows.append(["small, rescaled", "–", "–", "–", "–", mean_and_spread(across(measurements, "rescaled"))])
    for i, size in enumerate(measurements[0]["timed_sizes"]):
        cell = mean_and_spread(1000 * across(measurements, "update")[:, i])
        rows.append([f"an update on {size}: {cell} ms", "–", "–", "–", "–", "–"])
    return ["batch", "updates", "training loss", "training accuracy", "held-out accuracy", "top eigenvalue"], rows


STUDY = Study(
    number=7,
    heading=Said("Small Batch and Large Batch", "小批次與大批次"),
    lecture=Said(
        "Examples of a batch are worked on side by side, so a large batch costs little more time an update, and an "
        "epoch is faster. Yet small batches often do better on new data: their steps are noisy, and it is said that "
        "noise does not settle in sharp valleys, where training and test loss differ most.",
        "同一批次的資料是平行計算的，所以大批次更新一次只多花一點時間，跑完一個 epoch 更快。"
        "但小批次在新資料上往往比較好：它的步伐帶有雜訊，"
        "據說不會停在狹窄的山谷，而那裡正是訓練與測試損失差最多的地方。",
    ),
    formula="g = (1/B) Σ<sub>i ∈ batch</sub> ∇L<sub>i</sub>; sharpness: the largest λ of H u = λ u",
    varies=Said(
        "Windows in a batch (HW2, so few windows that the net learns them by heart, as Keskar had it: no augmentation, "
        "one rate, a large batch of a quarter of the data). The large batch once makes as many epochs as the small "
        "one, once as many updates. At last the first layer is multiplied by ten and the second divided by ten.",
        "批次大小（HW2，資料少到網路可以全部背下來，條件與 Keskar 相同：沒有資料增強、同一個學習率、"
        "大批次是全部資料的四分之一）。"
        "大批次一次跑同樣多的 epoch，一次更新同樣多次。最後把第一層乘以三十、第二層除以三十。",
    ),
    caption=Said(
        "Above: time of an update and of an epoch. Below: accuracy on training and new windows, and how sharp the "
        "training loss is where each net ends; thin lines are seeds.",
        "上：更新一次與跑完一個 epoch 的時間。下：訓練資料與新資料的正確率，以及各網路停下的地方損失有多陡；"
        "細線是各個種子。",
    ),
    doubt=Said(
        "Sharpness depends on the weights that stand for a function, not on the function alone (Dinh 2017). After many "
        "updates the large batch is surer of its training windows, so that its loss is smaller and flatter, and yet it "
        "is no better on new ones. Keskar's small batches made more updates, too; Hoffer 2017 closed the gap with as "
        "many. On a GPU times differ far less between sizes of batch. On the few real speakers of --full all nets "
        "learn their windows by heart, and what that costs on new windows hides the difference between batches.",
        "陡峭程度取決於用哪一組權重表示函數，不只取決於函數本身（Dinh 2017）。更新很多次之後，"
        "大批次對訓練資料更有把握，損失更小、更平坦，"
        "但在新資料上並沒有更好。Keskar 的小批次也更新得比較多次；Hoffer 2017 用同樣多的更新次數就把差距補上。"
        "在 GPU 上，不同批次大小的時間差異小得多。"
        "--full 的真實語者很少，每個網路都把訓練資料背了下來，批次之間的差異就看不出來了。",
    ),
    again=(
        "leeml fit --config configs/hw2_phoneme/medium.yaml --data.batch_size 8192",
        Said("HW2's net with a large batch.", "用大批次訓練 HW2 的網路。"),
    ),
    source="Lecture 3 of 2021; Keskar et al. 2017, ICLR (arXiv 1609.04836); Dinh et al. 2017, ICML (arXiv 1703.04933); "
    "Hoffer et al. 2017, NeurIPS (arXiv 1705.08741)",
    code=("scripts/studies/batch_size.py:rescaled", "callbacks/curvature.py:lanczos"),
    quick=Settings(),
    full=Settings(small=16, large=250, used=1000, window=5, hidden=(128, 128)),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw2_phoneme",
    full_looks=(4, 8),
)
