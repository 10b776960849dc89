"""Cross-attention: the decoder's layers may look at other encoder layers than the last."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from modules.nets.routing import MixedRouting, Routing
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, mean_and_spread
from scripts.studies.lab.fit import Curve
from scripts.studies.lab.translation import REAL, Size, corpus, judge_translator, trained

KINDS: dict[str, Routing] = {"last": "last", "same depth": "same", "learned mix": "mix"}


@dataclass(frozen=True)
class Settings:
    """Size of corpus, net and training."""

    size: Size = field(default_factory=Size)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Held-out loss and BLEU of each routing after the same steps, and the weights of the learned mix."""
    found: Measurements = {"loss": {}, "bleu": {}, "curves": {}}
    for name, routing in KINDS.items():
        data, curve = corpus(settings.size, seed, root), Curve()
        module = trained(settings.size, data, seed, routing, [curve])
        found["loss"][name], found["bleu"][name] = judge_translator(module, data)
        found["curves"][name] = torch.stack(curve.losses).tolist()
        for part in module.net.modules():
            if isinstance(part, MixedRouting):
                found["mix"] = part.scores.softmax(1).tolist()
    return found


def judge(measurements: list[Measurements]) -> list[Finding]:
    """A tenth of the loss and 2 points of BLEU count as a difference."""
    findings = []
    for name in list(KINDS)[1:]:
        ratio = [float(np.log2(m["loss"]["last"] / m["loss"][name])) for m in measurements]
        points = [m["bleu"][name] - m["bleu"]["last"] for m in measurements]
        findings += [
            effect(f"{name}: the held-out loss is no higher than with the last layer (log2 ratio, up to 1.1)",
                   ratio, -float(np.log2(1.1))),
            effect(f"{name}: BLEU is no lower (points, up to 2)", points, -2.0),
        ]  # fmt: skip
    return findings


def figure(measurements: list[Measurements]) -> Figure:
    """Training loss, held-out loss and BLEU by routing, and where the learned mix looks."""
    drawn = Figure(figsize=(12, 3.4), layout="constrained")
    curves, losses, scores, mix = drawn.subplots(1, 4)
    for place, (name, colour) in enumerate(zip(KINDS, ("tab:blue", "tab:green", "tab:red"), strict=True)):
        steps = min(len(m["curves"][name]) for m in measurements)  # a seed's pairs may make a batch more
        mean = np.mean([m["curves"][name][:steps] for m in measurements], axis=0)
        curves.plot(mean, color=colour, linewidth=0.8, label=name)
        for axes, key in ((losses, "loss"), (scores, "bleu")):
            values = [m[key][name] for m in measurements]
            axes.bar(place, np.mean(values), 0.6, color=colour, alpha=0.5)
            axes.plot(np.full(len(values), place), values, "o", color=colour, markersize=4)
    curves.set(xlabel="step", ylabel="training loss (label-smoothed)", title="mean over seeds")
    curves.legend(fontsize=8)
    for axes, title in ((losses, "held-out loss (nats a token)"), (scores, "BLEU of held-out pairs")):
        axes.set_xticks(range(len(KINDS)), KINDS, fontsize=8)
        axes.set_title(title)
    weights = np.mean([m["mix"] for m in measurements], axis=0)
    mix.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    for (row, column), weight in np.ndenumerate(weights):
        mix.text(column, row, f"{weight:.2f}", ha="center", va="center", color="black" if weight > 0.6 else "white")
    mix.set_xticks(range(weights.shape[1]), [str(n + 1) for n in range(weights.shape[1])])
    mix.set_yticks(range(len(weights)), [str(n + 1) for n in range(len(weights))])
    mix.set(xlabel="encoder layer", ylabel="decoder layer", title="weights of the learned mix")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Held-out loss and BLEU by routing."""
    rows = [[name, *(mean_and_spread([m[key][name] for m in measurements]) for key in ("loss", "bleu"))]
            for name in KINDS]  # fmt: skip
    return ["decoder layers attend to", "held-out loss (nats a token)", "BLEU"], rows


STUDY = Study(
    number=17,
    heading="Cross Attention",
    chinese="交叉注意力：不一定要用 Encoder 的最後一層",
    claim="The decoder need not attend to the encoder's last layer: with the layer of its own depth, or a learned mix "
    "of all, it translates as well after as many steps.",
    source="Lecture 5 of 2021 (Transformer); Liu et al. 2020 (arXiv 2005.08081); Bapna et al. 2018 (arXiv 1808.07561)",
    idea="Queries come from the decoder, keys and values from the encoder: from its last layer in the paper, but "
    "every layer has put something out, and each decoder layer may be given another. A mix weighs them by a softmax "
    "over learned scores, which begin equal. Generated sentence pairs; <code>--full</code> takes HW5's.",
    formula="M<sub>d</sub> = H<sub>last</sub>, or H<sub>d</sub>, or Σ<sub>e</sub> softmax<sub>e</sub>(s<sub>de</sub>) "
    "H<sub>e</sub>; K = M<sub>d</sub> W<sub>K</sub>, V = M<sub>d</sub> W<sub>V</sub>",
    varies="the encoder layer each decoder layer attends to; HW5's module, the same weights at first, order and steps",
    code=(
        "modules/nets/routing.py:MixedRouting",
        "modules/nets/routing.py:make_routing",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(),
    full=Settings(REAL),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw5_translation",
    seeds=3,
)
