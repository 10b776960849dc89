"""Cross-entropy or BLEU: reinforcement learning on BLEU itself, from where cross-entropy has brought a translator.

Changed after looking: a net that can learn the small language by heart leaves nothing to gain, and one that is stopped
before it has gains by either way; so the net is now too small for it, and trained until cross-entropy has little more
to give. No label smoothing, as a net so trained is flatter than the cross-entropy that is measured asks for.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.hw5_translation import TranslationData
from modules.hw5_translation import Translator
from modules.objectives import PolicyGradient
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, mean_and_spread
from scripts.studies.lab.fit import fit
from scripts.studies.lab.translation import REAL, Size, corpus, judge_translator, small_language, trained, write_pairs

GOES_ON = "cross-entropy", "policy gradient"


@dataclass(frozen=True)
class Settings:
    """Size of corpus, net and first training, and how it goes on."""

    size: Size = field(default_factory=Size)
    pairs: int = 2000
    """Of the small language; 0: HW5's own."""
    max_tokens: int = 512
    """Of a batch of the second training."""
    steps: int = 60
    """Of it."""
    rate: float = 5e-4
    """Of Adam in it: a tenth of that of the first training, or less."""
    samples: int = 4
    temperature: float = 0.5
    weight: float = 0.02
    """Of cross-entropy beside the reward."""
    checks: int = 6


def half(batch: dict[str, Any], number: int) -> Tensor:
    """Rows of a batch that are in this half, 0 or 1, of `data.quick`: bool (B,)."""
    return batch["quick"] & (batch["row"] % 2 == number)


def halves(module: Translator, data: TranslationData) -> dict[str, list[float]]:
    """Cross-entropy of a token, in nats, and BLEU of greedy translations, of the two halves of `data.quick`."""
    losses, scores = zip(*(judge_translator(module, data, partial(half, number=n)) for n in range(2)), strict=True)
    return {"loss": list(losses), "bleu": list(scores)}


def now(module: LightningModule) -> float:
    """Seconds, when all is done that the module was asked for."""
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


class Watch(Callback):
    """What held-out pairs say before a training and at some steps, the last of which ends it; and what a step takes."""

    def __init__(self, data: TranslationData, at: set[int]) -> None:
        self.data, self.at = data, at
        self.found: dict[str, list[Any]] = {"step": [], "loss": [], "bleu": []}
        self.seconds: list[float] = []

    def _look(self, trainer: Trainer, module: Any) -> None:
        module.eval()
        for name, value in {"step": trainer.global_step, **halves(module, self.data)}.items():
            self.found[name].append(value)
        module.train()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step."""
        self._look(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of this step."""
        self._began = now(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; look, where it is time."""
        self.seconds.append(now(pl_module) - self._began)
        if trainer.global_step in self.at:
            self._look(trainer, pl_module)
        trainer.should_stop = trainer.global_step == max(self.at)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Either way to go on from the same weights, on pairs of the small language or HW5's."""
    with TemporaryDirectory() as folder:
        if settings.pairs:
            said = small_language(settings.pairs, seed)
            root = Path(folder)
            write_pairs(root, [(sentence.source, sentence.last) for sentence in said])
        return either_way(settings, seed, root)


def either_way(settings: Settings, seed: int, root: Path) -> Measurements:
    """The first training, and what comes of each second one, of as many steps on the same batches."""
    module: Any = trained(settings.size, corpus(settings.size, seed, root), seed, schedule="linear", smoothing=0.0)
    module.new_optimizer = partial(torch.optim.Adam, lr=settings.rate, betas=(0.9, 0.98), eps=1e-9)
    first = {name: value.clone() for name, value in module.state_dict().items()}
    reward = PolicyGradient(settings.samples, settings.weight, temperature=settings.temperature)
    at = {round(settings.steps * part / settings.checks) for part in range(1, settings.checks + 1)}
    found: Measurements = {}
    for name, objective in zip(GOES_ON, (None, reward), strict=True):
        data: Any = corpus(replace(settings.size, max_tokens=settings.max_tokens), seed, root)
        watch = Watch(data, at)
        module.load_state_dict(first)
        module.objective = objective
        # it stops the last epoch in time
        fit(module.train(), data, settings.steps, [watch], settings.size.accelerator)
        found[name] = watch.found | {"seconds": float(np.median(watch.seconds))}
    return found


def curve(measurements: list[Measurements], name: str, key: str) -> np.ndarray:
    """Loss or BLEU at every look, the mean of both halves, (seeds, looks)."""
    return np.array([m[name][key] for m in measurements]).mean(2)


def chosen(found: Measurements) -> tuple[float, float]:
    """BLEU on one half of the looks, of both ways, that have the highest BLEU and the lowest loss on the other.

    The mean of both halves: no score is taken on pairs that chose it.
    """
    loss, bleu = (np.concatenate([found[name][key] for name in GOES_ON]) for key in ("loss", "bleu"))  # (looks, 2)
    scores = [(bleu[bleu[:, here].argmax(), 1 - here], bleu[loss[:, here].argmin(), 1 - here]) for here in range(2)]
    by_bleu, by_loss = np.mean(scores, axis=0)
    return float(by_bleu), float(by_loss)


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Half a point of BLEU and 0.01 nats count as a difference."""
    words, reward = ({key: curve(measurements, name, key) for key in ("loss", "bleu")} for name in GOES_ON)
    by_bleu, by_loss = np.array([chosen(m) for m in measurements]).T
    return [
        effect("policy gradient raises BLEU (points)", (reward["bleu"][:, -1] - reward["bleu"][:, 0]).tolist(), 0.5),
        effect("while cross-entropy gets no better by it (rise, from -0.01 nats a token)",
               (reward["loss"][:, -1] - reward["loss"][:, 0]).tolist(), -0.01),
        effect("it raises BLEU more than as many steps on cross-entropy (points)",
               (reward["bleu"][:, -1] - words["bleu"][:, -1]).tolist(), 0.5),
        effect("on other pairs a checkpoint chosen by BLEU has more of it than one chosen by cross-entropy (points)",
               (by_bleu - by_loss).tolist(), 0.5),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """The notes' picture: cross-entropy left, BLEU right of it; and one against the other."""
    drawn = Figure(figsize=(11.5, 3.6), layout="constrained")
    *curves, both = drawn.subplots(1, 3)
    for name, colour in zip(GOES_ON, ("tab:blue", "tab:red"), strict=True):
        steps = measurements[0][name]["step"]
        values = {key: curve(measurements, name, key) for key in ("loss", "bleu")}
        for axes, key in zip(curves, ("loss", "bleu"), strict=True):
            axes.plot(steps, values[key].T, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(steps, values[key].mean(0), "o-", color=colour, markersize=4, label=name)
        means = values["loss"].mean(0), values["bleu"].mean(0)
        both.plot(*means, "o-", color=colour, markersize=4, label=name)
        both.annotate(
            "",
            [mean[-1] for mean in means],
            [mean[-2] for mean in means],
            arrowprops={"color": colour, "arrowstyle": "->", "lw": 2},
        )
    curves[0].set(xlabel="step", title="cross-entropy of a token, held out (nats)")
    curves[1].set(xlabel="step", title="BLEU of greedy translations, held out")
    both.legend(title="goes on by", fontsize=8, loc="lower left")
    both.set(xlabel="cross-entropy", ylabel="BLEU", title="one against the other, mean over seeds")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Where both begin, where they end, and what a step takes."""
    keys = ("loss", "bleu")
    rows = [["begins", *(mean_and_spread(curve(measurements, GOES_ON[0], key)[:, 0]) for key in keys), ""]]
    for name in GOES_ON:
        ends = (mean_and_spread(curve(measurements, name, key)[:, -1]) for key in keys)
        times = [m[name]["seconds"] / m[GOES_ON[0]]["seconds"] for m in measurements]
        rows.append([f"after {name}", *ends, mean_and_spread(times)])
    by_bleu, by_loss = np.array([chosen(m) for m in measurements]).T
    rows += [["the best by BLEU on other pairs", "", mean_and_spread(by_bleu), ""]]
    rows += [["the best by cross-entropy on other pairs", "", mean_and_spread(by_loss), ""]]
    return ["held out", "cross-entropy (nats a token)", "BLEU", "time of a step"], rows


STUDY = Study(
    number=19,
    heading="Cross-entropy and BLEU, Reinforcement Learning",
    chinese="交叉熵與 BLEU：不能微分，就用強化學習",
    claim="The lowest cross-entropy is not the highest BLEU: from weights that cross-entropy has trained, policy "
    "gradient raises BLEU further, while cross-entropy gets no better.",
    source="Lecture 5 of 2021 (Transformer); Ranzato et al. 2016, ICLR (arXiv 1511.06732); Rennie et al. 2017, CVPR "
    "(arXiv 1612.00563)",
    idea="A translator is trained token by token and judged by whole sentences, and BLEU has no gradient. When you do "
    "not know how to optimise, use reinforcement learning: draw translations, score each by its BLEU, and make those "
    "likelier that beat the greedy one (self-critical training). Here a translator that is too small to know a small "
    "made-up language by heart is trained on cross-entropy until that has little more to give; then it goes on either "
    "way. Checkpoints are chosen on one half of the held-out pairs and judged on the other. "
    "<code>--full</code> takes HW5's pairs.",
    formula="∇E[r] = E[(r(ỹ) − r(ŷ)) ∇log P(ỹ | x)], ỹ drawn from P sharpened (each word by P<sup>1/τ</sup>, τ = ½), "
    "ŷ the greedy output, r = BLEU of the sentence, smoothed; of the loss 2 % is cross-entropy",
    varies="the loss of the second training; the same weights at first, the same batches, rate and steps",
    code=(
        "modules/objectives.py:PolicyGradient",
        "modules/translation/rewards.py:SentenceReward",
        "modules/hw5_translation.py:Translator._sequence_loss",
        "scripts/studies/lab/translation.py:judge_translator",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(
        Size(vocabulary=320, folds=4, judged=400, epochs=16, layers=1, d_model=8, heads=2, d_ff=16, rate=1e-2)
    ),
    full=Settings(REAL, pairs=0, max_tokens=1024, steps=600, rate=5e-5),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw5_translation",
    seeds=5,
)
