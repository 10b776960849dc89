"""Overfitting: flexibility against data, what each remedy does, and mismatch, which more data does not fix."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.base import Fold
from datamodules.hw1_covid import CovidData
from modules.hw1_covid import CovidRegressor
from scripts.studies.lab.fit import Errors, errors, rows
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread

SplitRule = Literal["random", "state", "time"]


@dataclass(frozen=True)
class Settings:
    """Rows, nets and remedies.

    Args:
        sizes: Few rows to train on, and many.
        nets: Hidden layers from stiff to flexible.
        wrong: Share of the rows to train on whose target is another row's, where remedies are tried.
        remedies: What each of them changes: see `trained`.
        steps, rate: Of Adam.
        edition: Of HW1's data.
    """

    sizes: tuple[int, int] = (100, 1000)
    nets: dict[str, list[int]] = field(default_factory=lambda: {"linear": [], "8": [8], "128 + 128": [128, 128]})
    wrong: float = 0.3
    remedies: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "dropout": {"dropout": 0.5},
            "weight decay": {"decay": 10.0},
            "noisy inputs": {"noise": 0.5},
        }
    )
    steps: int = 200
    rate: float = 3e-3
    edition: str | None = None


class FewRows(CovidData):
    """HW1's data with only some of the rows to train on, and wrong targets for a share of them.

    Args:
        limit: Rows to keep of each fold's training part, drawn by `seed`.
        wrong: Share of the first fold's rows to train on that exchange their targets by chance.
        options: Of CovidData.
    """

    def __init__(self, limit: int, wrong: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.limit, self.wrong = limit, wrong

    def read_files(self, stage: str) -> None:
        """Those of CovidData; then the targets are exchanged, which changes neither their mean nor their spread."""
        super().read_files(stage)
        assert self.train is not None
        assert self.train.target is not None
        rows, rng = self.chosen_folds()[0].train, np.random.default_rng((self.seed, 1))
        mixed = rng.permutation(rows)[: round(self.wrong * len(rows))]
        self.train.target[mixed] = self.train.target[rng.permutation(mixed)]

    def split(self) -> list[Fold]:
        """The folds of CovidData, their training rows thinned out."""
        rng = np.random.default_rng(self.seed)
        return [Fold(np.sort(rng.permutation(fold.train)[: self.limit]), fold.val) for fold in super().split()]


def noise_scale(module: CovidRegressor) -> Tensor:
    """Each feature's deviation in the rows to train on (1, C); 0 for marks of states and for what never changes."""
    assert module.facts is not None
    scale = 1 / module.net.inverse[:, 0]
    return torch.where(module.facts["is_state"] | scale.isinf(), 0.0, scale)


def trained(settings: Settings, seed: int, root: Path, **options: Any) -> tuple[Errors, Errors]:
    """Errors at the end of training, and where the held-out error was least: after 1, 2, 4, 8 ... or all steps.

    Args:
        settings, seed, root: As in `run`.
        options: limit, wrong and split of the data, hidden and dropout of the net, decay of the weights; and noise in
            the inputs, as a share of each feature's deviation, new in every step: augmentation for a table.
    """
    few = settings.sizes[0]
    data = FewRows(
        options.get("limit", few), options.get("wrong", 0.0), root=str(root), edition=settings.edition, seed=seed,
        split=options.get("split", "random"),
    )  # fmt: skip
    data.setup("fit")
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=settings.rate, weight_decay=options.get("decay", 0.0), fused=True)
    module = CovidRegressor(optimizer, hidden=options["hidden"], dropout=options.get("dropout", 0.0))
    assert data.facts is not None
    module.expect(data.facts)
    module.configure_model()
    steps: Any = module.configure_optimizers()
    x, y = rows(data, "train")
    noise = options.get("noise", 0.0) * noise_scale(module)
    last = best = Errors(math.inf, math.inf)
    for step in range(1, settings.steps + 1):
        module.train()
        batch = torch.randperm(len(y))[:few]
        steps.zero_grad()
        (module((x[batch] + noise * torch.randn(len(batch), x.shape[1]))[None]) - y[batch]).square().mean().backward()
        steps.step()
        if step.bit_count() == 1 or step == settings.steps:
            last = errors(module, data)
            best = min(best, last, key=lambda e: e.held_out)
    return last, best


def with_remedies(settings: Settings, seed: int, root: Path, wrong: float) -> dict[str, list[float]]:
    """Errors of the most flexible net on few rows, without and with each remedy."""
    options: dict[str, Any] = {"hidden": list(settings.nets.values())[-1], "wrong": wrong}
    last, best = trained(settings, seed, root, **options)
    found = {"none": list(last), "early stopping": list(best)}
    for name, remedy in settings.remedies.items():
        found[name] = list(trained(settings, seed, root, **options, **remedy)[0])
    found["more data"] = list(trained(settings, seed, root, **options, limit=settings.sizes[1])[0])
    return found


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Errors of every net on few and many rows, of remedies on right and on wrong targets, and of other splits."""
    right = with_remedies(settings, seed, root, 0.0)
    found: Measurements = {"sizes": list(settings.sizes), "grid": {}, "right": right}
    found["wrong"] = with_remedies(settings, seed, root, settings.wrong)
    names = list(settings.nets)
    for name in names[:-1]:
        hidden = settings.nets[name]
        found["grid"][name] = [list(trained(settings, seed, root, hidden=hidden, limit=n)[0]) for n in settings.sizes]
    found["grid"][names[-1]] = [right["none"], right["more data"]]
    mixed, _ = trained(settings, seed, root, hidden=settings.nets[names[-1]], wrong=1.0)
    found["all wrong"] = list(mixed)
    middle: dict[str, Any] = {"hidden": settings.nets[names[1]], "limit": settings.sizes[1]}
    found["splits"] = {"random": found["grid"][names[1]][1]}
    for split in ("state", "time"):
        found["splits"][split] = list(trained(settings, seed, root, **middle, split=split)[0])
    return found


def gap(found: Measurements, net: int, size: int) -> float:
    """Held-out over training error; nets from stiff to flexible, few rows before many."""
    train, held_out = list(found["grid"].values())[net][size]
    return held_out / train


def gain(targets: str, name: str) -> Callable[[Measurements], float]:
    """Held-out error without a remedy over that with it."""
    return lambda found: found[targets]["none"][1] / found[targets][name][1]


def mismatch(split: str) -> Callable[[Measurements], float]:
    """Held-out error of rows that are held out in such a way over that of random ones."""
    return lambda found: found["splits"][split][1] / found["splits"]["random"][1]


ERROR_WITHOUT = Said("times as much held-out error without it", "倍的留出誤差（不用它時）")
GAP = Said("times as large a ratio of held-out to training error", "倍的差距（留出誤差除以訓練誤差）")
REMEDIES = (
    ("more data", "Ten times as many rows lower", "十倍的資料"),
    ("early stopping", "Early stopping lowers", "early stopping"),
    ("weight decay", "Weight decay lowers", "weight decay"),
    ("dropout", "Dropout lowers", "dropout"),
    ("noisy inputs", "Augmentation, here noise in the inputs, lowers", "資料增強（這裡是在輸入加雜訊）"),
)
STATEMENTS = (
    Statement(
        Said(
            "On 100 rows a flexible net has a wider gap between held-out and training error than a small one.",
            "只有 100 筆資料時，有彈性的網路比小網路的留出誤差與訓練誤差差得更多。",
        ),
        lambda found: gap(found, -1, 0) / gap(found, 1, 0), 1.5, GAP, "ratio",
    ),
    Statement(
        Said("On 1,000 rows its gap is narrower than on 100.", "資料增加到 1,000 筆，它的差距就縮小。"),
        lambda found: gap(found, -1, 0) / gap(found, -1, 1), 1.5, GAP, "ratio",
    ),
    Statement(
        Said(
            "It can learn by heart: where all targets are exchanged by chance, its error on the rows it has seen is "
            "far below that on others.",
            "它能死背：就算把所有答案隨機調換，它在看過的資料上誤差仍然遠低於其他資料。",
        ),
        lambda found: found["all wrong"][1] / found["all wrong"][0], 10.0,
        Said("times as much error on other rows", "倍的誤差（在其他資料上）"), "ratio",
    ),
    *(
        Statement(
            Said(
                f"{english} the held-out error where three of ten targets are wrong.",
                f"三成的答案是錯的時，{chinese}能降低留出誤差。",
            ),
            gain("wrong", name), 1.1, ERROR_WITHOUT, "ratio",
        )
        for name, english, chinese in REMEDIES
    ),
    *(
        Statement(
            Said(
                f"{english} it where all targets are right, too.",
                f"答案全對時，{chinese}也能降低留出誤差。",
            ),
            gain("right", name), 1.1, ERROR_WITHOUT, "ratio",
        )
        for name, english, chinese in REMEDIES
        if name != "early stopping"  # the best of its epochs is never worse than the last
    ),
    *(
        Statement(
            Said(
                f"Mismatch: on {english} the error is larger than on random ones.",
                f"不匹配（mismatch）：{chinese}的誤差比隨機留出的大。",
            ),
            mismatch(split), 1.1, Said("times as much error", "倍的誤差"), "ratio",
        )
        for split, english, chinese in (
            ("state", "rows of other states", "其他州"),
            ("time", "rows of later days", "之後的日子"),
        )
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Errors by flexibility, by remedy and by split."""
    drawn = Figure(figsize=(8, 8), layout="constrained")
    places = drawn.subplot_mosaic("AAAB;CCCC", height_ratios=[1, 1.1])
    flexibility, splits, remedies = (places[letter] for letter in "ABC")
    grid = np.array([list(m["grid"].values()) for m in measurements])
    names = list(measurements[0]["grid"])
    for i, (size, colour) in enumerate(zip(measurements[0]["sizes"], ("tab:red", "tab:blue"), strict=True)):
        for part, style in enumerate(("--", "-")):
            label = f"{size:,} rows, {('training', 'held out')[part]}"
            flexibility.semilogy(range(len(names)), grid[:, :, i, part].mean(0), "o" + style, color=colour, label=label)
    flexibility.set_xticks(range(len(names)), names)
    flexibility.set(title="flexibility", xlabel="hidden units", ylabel="error (percent squared)")
    flexibility.legend(fontsize=9)
    for axes, kinds, ways in (
        (splits, [("splits", "tab:purple", "")], list(measurements[0]["splits"])),
        (
            remedies, [("wrong", "tab:red", "3 of 10 targets wrong"), ("right", "tab:blue", "all targets right")],
            list(measurements[0]["right"]),
        ),
    ):  # fmt: skip
        for i, (kind, colour, label) in enumerate(kinds):
            values = np.array([[m[kind][name][1] for name in ways] for m in measurements])
            places_of = np.arange(len(ways)) + 0.4 * (i - (len(kinds) - 1) / 2)
            axes.bar(places_of, values.mean(0), 0.38, yerr=values.std(0), capsize=3, color=colour, label=label)
        axes.set_ylim(bottom=0)
    splits.set_xticks(range(3), ["random\nrows", "other\nstates", "later\ndays"])
    splits.set_title("mismatch")
    remedies.set_xticks(range(6), [name.replace(" ", "\n") for name in measurements[0]["right"]])
    remedies.set(title=f"remedies: {names[-1]} hidden units, {measurements[0]['sizes'][0]} rows",
                 ylabel="held-out error (percent squared)")  # fmt: skip
    remedies.legend(fontsize=9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Training and held-out errors of all settings."""

    def row(name: str, values: list[list[float]]) -> list[Any]:
        train, held = np.array(values).T
        return [name, mean_and_spread(train), mean_and_spread(held)]

    rows = []
    for net in measurements[0]["grid"]:
        for i, size in enumerate(measurements[0]["sizes"]):
            rows.append(row(f"{net}, {size} rows", [m["grid"][net][i] for m in measurements]))
    kinds = {"wrong": "some targets wrong", "right": "all targets right", "splits": "split"}
    for kind, words in kinds.items():
        for name in measurements[0][kind]:
            rows.append(row(f"{words}: {name}", [m[kind][name] for m in measurements]))
    rows.append(row("all targets exchanged", [m["all wrong"] for m in measurements]))
    return ["", "training error", "held-out error"], rows


STUDY = Study(
    number=5,
    heading=Said("Overfitting", "過擬合"),
    lecture=Said(
        "A net with more freedom than the rows can pin down does as it likes between them: a small training error and "
        "a large one on new rows. More data is the best cure; augmentation makes more of what there is; dropout, "
        "weight decay and early stopping take freedom away. Where new rows come from another distribution it is "
        "<em>mismatch</em>, and none of these helps.",
        "資料限制不了的部分，有彈性的網路愛怎麼走就怎麼走：訓練誤差小，新資料的誤差大。最好的辦法是更多資料；"
        "資料增強（augmentation）讓現有的資料變多；"
        "dropout、weight decay、early stopping 減少自由度。如果新資料來自不同的分布，"
        "那是<em>不匹配</em>（mismatch），這些方法都沒有用。",
    ),
    formula="gap = L<sub>held out</sub> / L<sub>train</sub>",
    varies=Said(
        "Hidden units and rows to train on (HW1); remedies on 100 rows, once with right targets and once with three of "
        "ten exchanged by chance among the rows, so that there is something wrong to learn by heart; and how rows are "
        "held out. Early stopping is judged by the best of some epochs on the very rows that judge it.",
        "隱藏單元數與訓練資料筆數（HW1）；在 100 筆資料上的各種方法，一次答案全對，一次把三成的答案隨機調換，"
        "這樣才有錯的東西可以死背；"
        "以及留出資料的方式。Early stopping 取的是幾個 epoch 中留出誤差最小的，用的就是評分的那些資料。",
    ),
    caption=Said(
        "Above left: errors by flexibility; where dashed and solid lines part, the net overfits. Above right: error on "
        "random rows, on states and on days that were not seen. Below: what each remedy leaves of the held-out error.",
        "左上：彈性與誤差，虛線與實線分開就是過擬合。右上：隨機留出、沒看過的州、沒看過的日子的誤差。下："
        "各種方法之後的留出誤差。",
    ),
    doubt=Said(
        "HW1's target is almost a linear function of its features, and where all targets are right there is little "
        "noise to learn by heart. Dropout and noise in the inputs then mainly hide what the net needs. Another "
        "strength of each remedy gives other numbers; they were chosen on other seeds than those that judge.",
        "HW1 的答案幾乎是特徵的線性函數；答案全對時，沒有什麼雜訊可以死背，"
        "dropout 與輸入雜訊主要只是遮住網路需要的資訊。"
        "各方法的強度不同，數字也會不同；強度是用另一些種子選的，不是評分的種子。",
    ),
    again=(
        "leeml fit --config configs/hw1_covid/medium.yaml --data.split state",
        Said("HW1's net, judged on states that it has not seen.", "訓練 HW1 的網路，用沒看過的州來評分。"),
    ),
    source="Lecture 2 of 2021; Geman et al. 1992, Neural Computation 4; Zhang et al. 2017, ICLR (arXiv 1611.03530); "
    "Srivastava et al. 2014, JMLR 15",
    code=("modules/hw1_covid.py:CovidRegressor", "datamodules/hw1_covid.py:CovidData.split"),
    quick=Settings(),
    full=Settings(edition="2021"),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw1_covid",
    quick_looks=(4, 8, 32),
    full_looks=(4, 8, 32),
)
