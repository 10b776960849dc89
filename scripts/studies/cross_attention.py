"""Cross-attention: the decoder's layers may look at other encoder layers than the last."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from modules.nets.routing import MixedRouting, Routing
from scripts.studies.lab.fit import Curve
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread
from scripts.studies.lab.translation import REAL, Size, corpus, judge_translator, told_once, trained

KINDS: dict[str, Routing] = {"last": "last", "same depth": "same", "learned mix": "mix"}
WINDOW = 10  # steps over which the loss is averaged to see whether it has fallen


@dataclass(frozen=True)
class Settings:
    """Size of corpus, net and training, and the training loss whose steps are counted, in nats a token."""

    size: Size = field(default_factory=Size)
    pairs: int = 2000
    """Of the small language; 0: HW5's own."""
    fallen: float = 1.0


def steps_until(losses: list[float], fallen: float) -> int:
    """Steps after which the mean of the last `WINDOW` losses is first below it; all of them where it never is."""
    means = np.convolve(losses, np.ones(WINDOW) / WINDOW, "valid")
    below = np.flatnonzero(means < fallen)
    return int(below[0]) + WINDOW if len(below) else len(losses)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Steps that each routing needs, its held-out loss and BLEU at the end, and the weights of the learned mix."""
    found: Measurements = {"steps": {}, "loss": {}, "bleu": {}, "curves": {}}
    with told_once(settings.pairs, seed, root) as place:
        for name, routing in KINDS.items():
            data, curve = corpus(settings.size, seed, place), Curve()
            module = trained(settings.size, data, seed, routing, [curve], schedule="linear", smoothing=0.0)
            found["loss"][name], found["bleu"][name] = judge_translator(module, data)
            found["curves"][name] = torch.stack(curve.losses).tolist()
            found["steps"][name] = steps_until(found["curves"][name], settings.fallen)
            for part in module.net.modules():
                if isinstance(part, MixedRouting):
                    found["mix"] = part.scores.softmax(1).tolist()
    return found


def longer(name: str) -> Callable[[Measurements], float]:
    """How many times as many steps it needs as with the last layer."""
    return lambda found: found["steps"][name] / found["steps"]["last"]


def worse(name: str) -> Callable[[Measurements], float]:
    """By how many points of BLEU the translations are worse than with the last layer."""
    return lambda found: found["bleu"]["last"] - found["bleu"][name]


OTHERS = (
    ("same depth", "the encoder layer of its own depth", "同樣深度的 encoder 層"),
    ("learned mix", "a learned mix of all encoder layers", "學出來的各層混合"),
)
STATEMENTS = (
    *(
        Statement(
            Said(
                f"With {english} it learns in no more steps than with the last layer.",
                f"看{chinese}，需要的訓練步數不比只看最後一層多。",
            ),
            longer(name), 1.1, Said("times as many steps", "倍的步數"), "ratio", "at most",
        )
        for name, english, chinese in OTHERS
    ),
    *(
        Statement(
            Said(
                f"At the end, with {english} it translates no worse than with the last layer.",
                f"訓練結束時，看{chinese}翻得不比只看最後一層差。",
            ),
            worse(name), 2.0, Said("points of BLEU fewer", "分 BLEU（較低）"), kind="at most",
        )
        for name, english, chinese in OTHERS
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Training loss, BLEU by routing, and where the learned mix looks."""
    drawn = Figure(figsize=(8, 7), layout="constrained")
    grid = drawn.add_gridspec(2, 2)
    curves, scores, mix = (drawn.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))
    for place, (name, colour) in enumerate(zip(KINDS, ("tab:blue", "tab:green", "tab:red"), strict=True)):
        steps = min(len(m["curves"][name]) for m in measurements)  # a seed's pairs may make a batch more
        losses = np.array([m["curves"][name][:steps] for m in measurements])
        curves.plot(losses.T, color=colour, alpha=0.12, linewidth=0.5)
        curves.plot(losses.mean(0), color=colour, label=name)
        values = [m["bleu"][name] for m in measurements]
        scores.bar(place, np.mean(values), 0.6, color=colour, alpha=0.5)
        scores.plot(np.full(len(values), place), values, "o", color=colour, markersize=4)
    curves.set(xlabel="step", ylabel="training loss (nats a token)", ylim=(0, None))
    curves.legend(title="encoder layer that is looked at", fontsize=9)
    scores.set_xticks(range(len(KINDS)), KINDS)
    scores.set(title="at the end", ylabel="BLEU, held out")
    weights = np.mean([m["mix"] for m in measurements], axis=0)
    mix.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    for (row, column), weight in np.ndenumerate(weights):
        mix.text(column, row, f"{weight:.2f}", ha="center", va="center", color="black" if weight > 0.6 else "white")
    mix.set_xticks(range(weights.shape[1]), [str(n + 1) for n in range(weights.shape[1])])
    mix.set_yticks(range(len(weights)), [str(n + 1) for n in range(len(weights))])
    mix.set(xlabel="encoder layer", ylabel="decoder layer", title="weights of the learned mix")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Steps, held-out loss and BLEU by routing."""
    rows = [
        [name, *(mean_and_spread([m[key][name] for m in measurements]) for key in ("steps", "loss", "bleu"))]
        for name in KINDS
    ]
    return ["decoder layers attend to", "steps until the loss has fallen", "held-out loss (nats a token)", "BLEU"], rows


STUDY = Study(
    number=17,
    heading=Said("Cross Attention", "交叉注意力"),
    lecture=Said(
        "In cross-attention the decoder asks and the encoder answers: queries come from the decoder, keys and values "
        "from the encoder. In the paper every decoder layer looks at the encoder's last layer. It need not: each "
        "encoder layer has put something out, and each decoder layer may be given another.",
        "交叉注意力是 decoder 發問、encoder 回答：query 來自 decoder，key 與 value 來自 encoder。論文裡 decoder "
        "的每一層都看 encoder 的最後一層。"
        "但不一定要這樣：encoder 每一層都有輸出，decoder 的每一層可以看不同的層。",
    ),
    formula="M<sub>d</sub> = H<sub>last</sub>, or H<sub>d</sub>, or Σ<sub>e</sub> softmax<sub>e</sub>(s<sub>de</sub>) "
    "H<sub>e</sub>; K = M<sub>d</sub> W<sub>K</sub>, V = M<sub>d</sub> W<sub>V</sub>",
    varies=Said(
        "The encoder layer that each decoder layer looks at: the last, that of its own depth, or a mix whose weights "
        "are learned and begin equal. HW5's module with the same weights at first, on a small made-up language; "
        "<code>--full</code> takes the shorter ones of HW5's pairs.",
        "decoder 每一層看 encoder 的哪一層：最後一層、同樣深度的那一層，或學出來的混合（權重一開始全部相等）。"
        "用 HW5 的模組，初始權重相同，資料是自創的小語言；<code>--full</code> 用 HW5 較短的句對。",
    ),
    caption=Said(
        "Top: training loss, thin lines are single seeds. Bottom: BLEU at the end, and how much each decoder layer "
        "takes from each encoder layer in the learned mix.",
        "上：訓練損失（細線是各個種子）。下：結束時的 BLEU，以及學出來的混合中，decoder 各層取用 encoder 各層的比例。",
    ),
    doubt=Said(
        "The small language is so easy that all three learn it almost to the end; after two epochs of real pairs they "
        "have not learned enough to say how they would end. With "
        "very many layers the way to the first ones is known to matter (Bapna et al. 2018).",
        "這個小語言很簡單，三種做法最後幾乎都學會了；真實句對只訓練兩個 epoch，還看不出最後的高下。層數非常多時，"
        "能不能直接看到前面幾層就有影響（Bapna 等人 2018）。",
    ),
    again=(
        "leeml fit --config configs/hw5_translation/tiny.yaml --model.net.routing mix",
        Said("HW5 with a learned mix.", "HW5 用學出來的混合。"),
    ),
    source="Lecture 5 of 2021 (Transformer); Liu et al. 2020 (arXiv 2005.08081); Bapna et al. 2018 (arXiv 1808.07561)",
    code=(
        "modules/nets/routing.py:MixedRouting",
        "modules/nets/routing.py:make_routing",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(Size(vocabulary=320, epochs=3)),
    full=Settings(REAL, pairs=0, fallen=4.0),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw5_translation",
    full_looks=(4, 8),
)
