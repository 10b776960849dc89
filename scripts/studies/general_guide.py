"""The general guide: a deeper net with a higher training loss has an optimisation issue; residual connections help."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from callbacks.general_guide import Losses, diagnose
from callbacks.warmup import WarmupScheduler
from datamodules.hw1_covid import CovidData
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, mean_and_spread
from scripts.studies.lab.fit import Curve, errors, fit, regressor

NETS = {"shallow": (0, False), "deep, plain": (1, False), "deep, residual": (1, True)}
"""Index of the depth, residual."""


@dataclass(frozen=True)
class Settings:
    """Hidden layers of the shallow and the deep nets, their width, and how they are trained."""

    depths: tuple[int, int] = (2, 20)
    width: int = 32
    epochs: int = 15
    rate: float = 1e-3
    edition: str | None = None


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Training loss of the last epoch and held-out error of the three nets, and the branch the guide names for each."""
    losses, curves = {}, {}
    for name, (which, residual) in NETS.items():
        torch.manual_seed(seed)
        data = CovidData(str(root), edition=settings.edition, seed=seed, batch_size=256)
        hidden = [settings.width] * settings.depths[which]
        module = regressor(torch.optim.Adam, settings.rate, hidden=hidden, residual=residual, batch_norm=True)
        curve = Curve()
        fit(module, data, settings.epochs, [curve, WarmupScheduler(schedule="cosine", warmup=0)])
        curves[name] = curve.by_epoch(settings.epochs)
        size = sum(p.numel() for p in module.parameters())
        losses[name] = Losses(size, curves[name][-1], errors(module, data).held_out)
    guide = {
        name: diagnose(own, [other for key, other in losses.items() if key != name], goal=None)
        for name, own in losses.items()
    }
    return {
        "depths": list(settings.depths),
        "train": {name: run.train for name, run in losses.items()},
        "held_out": {name: run.validation for name, run in losses.items()},
        "curves": curves,
        "branch": guide,
    }


def log_ratio(measurements: list[Measurements], above: str, below: str) -> list[float]:
    """log2 of the ratio of two nets' training errors, one a seed."""
    return [float(np.log2(m["train"][above] / m["train"][below])) for m in measurements]


def judge(measurements: list[Measurements]) -> list[Finding]:
    """A tenth more or less counts as a difference."""
    margin = float(np.log2(1.1))
    return [
        effect("the deep plain net has more training loss than the shallow one (log2 ratio)",
               log_ratio(measurements, "deep, plain", "shallow"), margin),
        effect("residual connections lower the deep net's training loss (log2 ratio)",
               log_ratio(measurements, "deep, plain", "deep, residual"), margin),
        effect("with them the deep net has no more training loss than the shallow one (log2 ratio, up to 1.1)",
               log_ratio(measurements, "shallow", "deep, residual"), -margin),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Training loss by epoch, and both errors at the end."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for place, (name, colour) in enumerate(zip(NETS, ("tab:blue", "tab:red", "tab:green"), strict=True)):
        curves = np.array([m["curves"][name] for m in measurements])
        epochs = range(1, curves.shape[1] + 1)
        depth = measurements[0]["depths"][NETS[name][0]]
        left.semilogy(epochs, curves.T, color=colour, alpha=0.25, linewidth=0.8)
        left.semilogy(epochs, np.exp(np.log(curves).mean(0)), color=colour, label=f"{name}: {depth} hidden layers")
        for part, shift, style in (("train", -0.15, "o"), ("held_out", 0.15, "s")):
            values = [m[part][name] for m in measurements]
            right.semilogy(np.full(len(values), place + shift), values, style, color=colour, alpha=0.6,
                           fillstyle="full" if part == "train" else "none")  # fmt: skip
    left.set(xlabel="epoch", ylabel="training loss", title="while training")
    left.legend(fontsize=8)
    right.set_xticks(range(len(NETS)), NETS)
    right.set(ylabel="mean squared error", title="at the end: training (full), held out (hollow)")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Errors of the nets, and what the guide says of them."""
    rows = []
    for name, (which, _) in NETS.items():
        train, held_out = ([m[part][name] for m in measurements] for part in ("train", "held_out"))
        branches = [m["branch"][name] for m in measurements]
        said = ", ".join(f"{b} ({branches.count(b)})" for b in dict.fromkeys(branches))
        depth = measurements[0]["depths"][which]
        rows.append([name, depth, mean_and_spread(train), mean_and_spread(held_out), said])
    return ["net", "hidden layers", "training loss", "held-out error", "the guide says (seeds)"], rows


STUDY = Study(
    number=2,
    heading="General Guide",
    chinese="機器學習任務攻略：模型偏差還是最佳化問題",
    claim="A plain net that is deeper than another but learns less of the training data has an optimisation issue, "
    "not overfitting; residual connections cure it.",
    source="Lecture 2 of 2021; He et al. 2016, CVPR (arXiv 1512.03385), figure 1",
    idea="A deeper net could copy the shallow one and let its other layers pass everything through, so a higher "
    "<em>training</em> loss cannot mean that it is too simple, nor that it overfits: it was not found. "
    "<code>callbacks/general_guide.py</code> makes the same comparison after any fit.",
    formula="L<sub>train</sub>(deep) &gt; L<sub>train</sub>(shallow) ⇒ optimisation; block: y = x + f(x)",
    varies="2 or 20 hidden layers, with and without residual connections, HW1's module with batch normalisation, as "
    "in the paper",
    code=("callbacks/general_guide.py:diagnose", "modules/nets/mlp.py:Block"),
    quick=Settings(),
    full=Settings(epochs=100, edition="2021"),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw1_covid",
    seeds=5,
)
