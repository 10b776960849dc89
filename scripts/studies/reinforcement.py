"""Cross-entropy or BLEU: reinforcement learning on BLEU itself, from where cross-entropy has brought a translator.

The language is made so that the two want different things. Most references are chatty: an interjection first, and a
particle drawn at random after each character. Cross-entropy makes that way the likeliest, but nobody can guess the
particles; the formal way, with the same particle each time, is rarer and scores more on average. Both are equally
long, as batches hold sentences of about one length.
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
from scripts.studies.lab.fit import fit
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, mean_and_spread
from scripts.studies.lab.translation import Size, corpus, judge_translator, small_language, trained, write_pairs

GOES_ON = "cross-entropy", "policy gradient"
PARTICLES = {"欸": "啊呀吧呢嘛哦", "請": "之"}
"""After each character, by how a sentence begins: chatty, formal."""


@dataclass(frozen=True)
class Settings:
    """Size of corpus, net and first training, and how it goes on."""

    size: Size = field(default_factory=Size)
    pairs: int = 2000
    chatty: float = 0.7
    """Share of the references that are."""
    max_tokens: int = 512
    """Of a batch of the second training."""
    steps: int = 60
    """Of it."""
    rate: float = 5e-4
    """Of Adam in it."""
    samples: int = 4
    temperature: float = 0.5
    weight: float = 0.02
    """Of cross-entropy beside the reward."""
    checks: int = 4


def two_ways(settings: Settings, seed: int) -> list[tuple[str, str]]:
    """Pairs of the small language, some of them chatty, the others formal."""
    rng = np.random.default_rng((seed, 1))
    pairs = []
    for said in small_language(settings.pairs, seed):
        opens, particles = list(PARTICLES.items())[rng.random() >= settings.chatty]
        told = "".join(letter + particles[rng.integers(len(particles))] for letter in said.last)
        pairs.append((said.source, opens + told))
    return pairs


def half(batch: dict[str, Any], number: int) -> Tensor:
    """Rows of a batch that are in this half, 0 or 1, of `data.quick`: bool (B,)."""
    return batch["quick"] & (batch["row"] % 2 == number)


def halves(module: Translator, data: TranslationData) -> dict[str, list[float]]:
    """Cross-entropy of a token, in nats, and BLEU of greedy translations, of the two halves of `data.quick`."""
    losses, scores = zip(*(judge_translator(module, data, partial(half, number=n)) for n in range(2)), strict=True)
    return {"loss": list(losses), "bleu": list(scores)}


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
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; look, where it is time."""
        self.seconds.append(time.perf_counter() - self._began)
        if trainer.global_step in self.at:
            self._look(trainer, pl_module)
        trainer.should_stop = trainer.global_step == max(self.at)


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """The first training, and what comes of each second one, of as many steps on the same batches."""
    with TemporaryDirectory() as folder:
        write_pairs(Path(folder), two_ways(settings, seed))
        data = corpus(settings.size, seed, Path(folder))
        module: Any = trained(settings.size, data, seed, schedule="linear", smoothing=0.0)
        module.new_optimizer = partial(torch.optim.Adam, lr=settings.rate, betas=(0.9, 0.98), eps=1e-9)
        first = {name: value.clone() for name, value in module.state_dict().items()}
        reward = PolicyGradient(settings.samples, settings.weight, temperature=settings.temperature)
        at = {round(settings.steps * part / settings.checks) for part in range(1, settings.checks + 1)}
        found: Measurements = {}
        for name, objective in zip(GOES_ON, (None, reward), strict=True):
            data = corpus(replace(settings.size, max_tokens=settings.max_tokens), seed, Path(folder))
            watch = Watch(data, at)
            module.load_state_dict(first)
            module.objective = objective
            fit(module.train(), data, settings.steps, [watch])  # it stops the last epoch in time
            found[name] = watch.found | {"seconds": float(np.median(watch.seconds)), "example": example(module, data)}
    return found


def example(module: Translator, data: TranslationData) -> list[str]:
    """A held-out source, its reference and what is said."""
    batch = next(iter(data.val_dataloader()))
    return [batch["text"][0], batch["reference"][0], module.eval().translate(batch["source"][:1], 1)[0]]


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


def change(found: Measurements, name: str, key: str) -> float:
    """Of loss or BLEU from the first look to the last, the mean of both halves."""
    looks = np.mean(found[name][key], axis=1)
    return float(looks[-1] - looks[0])


WORDS, REWARD = GOES_ON
POINTS = Said("points of BLEU", "分 BLEU")
STATEMENTS = (
    Statement(
        Said("Policy gradient raises BLEU.", "Policy gradient 提高 BLEU。"),
        lambda found: change(found, REWARD, "bleu"), 2.0, POINTS,
    ),
    Statement(
        Said("Meanwhile cross-entropy gets worse.", "同時交叉熵變差。"),
        lambda found: change(found, REWARD, "loss"), 0.02, Said("nats a token more", "nats（每個 token 的增加）"),
    ),
    Statement(
        Said(
            "Policy gradient raises BLEU more than as many steps on cross-entropy.",
            "同樣的步數，policy gradient 提高的 BLEU 比交叉熵多。",
        ),
        lambda found: change(found, REWARD, "bleu") - change(found, WORDS, "bleu"), 2.0, POINTS,
    ),
    Statement(
        Said(
            "A checkpoint chosen by BLEU has more BLEU on other pairs than one chosen by cross-entropy.",
            "用 BLEU 選的檢查點，在其他句對上的 BLEU 比用交叉熵選的高。",
        ),
        lambda found: chosen(found)[0] - chosen(found)[1], 2.0, POINTS,
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """The notes' picture: cross-entropy left, BLEU right of it; and one against the other."""
    drawn = Figure(figsize=(8, 7), layout="constrained")
    grid = drawn.add_gridspec(2, 2)
    curves, both = [drawn.add_subplot(grid[0, column]) for column in range(2)], drawn.add_subplot(grid[1, :])
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
            (means[0][-1], means[1][-1]),
            (means[0][-2], means[1][-2]),
            arrowprops={"color": colour, "arrowstyle": "->", "lw": 2},
        )
    curves[0].set(xlabel="step", ylabel="nats a token", title="cross-entropy, held out")
    curves[1].set(xlabel="step", ylabel="BLEU", title="BLEU, held out")
    both.legend(title="goes on by", fontsize=9)
    both.set(xlabel="cross-entropy (nats a token)", ylabel="BLEU", title="one against the other, mean over seeds")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Where both begin, where they end, what a step takes, and what is said of one sentence."""
    keys = ("loss", "bleu")
    rows = [["begins", *(mean_and_spread(curve(measurements, WORDS, key)[:, 0]) for key in keys), "", ""]]
    for name in GOES_ON:
        ends = (mean_and_spread(curve(measurements, name, key)[:, -1]) for key in keys)
        times = [m[name]["seconds"] / m[WORDS]["seconds"] for m in measurements]
        rows.append([f"after {name}", *ends, mean_and_spread(times), measurements[0][name]["example"][2]])
    by_bleu, by_loss = np.array([chosen(m) for m in measurements]).T
    source, reference, _ = measurements[0][WORDS]["example"]
    rows += [["the best by BLEU on other pairs", "", mean_and_spread(by_bleu), "", ""]]
    rows += [["the best by cross-entropy on other pairs", "", mean_and_spread(by_loss), "", ""]]
    rows += [["reference", "", "", "", f"{source}: {reference}"]]
    return ["held out", "cross-entropy (nats a token)", "BLEU", "time of a step", "a sentence"], rows


STUDY = Study(
    number=19,
    heading=Said("Cross-entropy and BLEU, Reinforcement Learning", "交叉熵與 BLEU、強化學習"),
    lecture=Said(
        "A translator is trained token by token on cross-entropy, but judged by whole sentences, and the lowest "
        "cross-entropy is not the highest BLEU. BLEU has no gradient. When you do not know how to optimise, use "
        "reinforcement learning: draw translations, and make those likelier that beat the greedy one.",
        "翻譯模型逐字訓練交叉熵，卻以整句評分，而交叉熵最低不等於 BLEU 最高。BLEU 不能微分。「不知道怎麼最佳化，"
        "就用強化學習」："
        "抽樣幾個翻譯，提高勝過 greedy 結果者的機率。",
    ),
    formula="∇E[r] = E[(r(ỹ) − r(ŷ)) ∇log P(ỹ | x)], ỹ drawn from P sharpened (each word by P<sup>1/τ</sup>, τ = ½), "
    "ŷ the greedy output, r = BLEU of the sentence, smoothed; of the loss 2 % is cross-entropy",
    varies=Said(
        "The loss of a second training, from the same weights, with the same batches and steps: cross-entropy, or "
        "policy gradient (self-critical training). Seven of ten references are chatty, with an interjection first "
        "and a particle drawn at random after each character; three are formal, always with the same one. Chatty is "
        "likelier, but its particles cannot be guessed.",
        "第二次訓練的損失：從同樣的權重、用同樣的批次與步數，繼續訓練交叉熵，或改用 policy gradient（self-critical "
        "training）。"
        "參考翻譯有七成是口語版：先來一個「欸」，每個字後面再隨機加一個語助詞；三成是正式版，以「請」開頭，"
        "每個字後面都加「之」。口語版的機率較高，但語助詞猜不到。",
    ),
    caption=Said(
        "Top: cross-entropy and BLEU while it goes on, thin lines are single seeds. Bottom: one against the other; "
        "arrows show the way.",
        "上：繼續訓練時的交叉熵與 BLEU（細線是各個種子）。下：兩者的關係，箭頭是訓練的方向。",
    ),
    doubt=Said(
        "The language is made for the effect: in real pairs cross-entropy and BLEU agree more, and the gain is a point "
        "or less. BLEU is not what people mean by a good translation, either.",
        "這個語言是為了看到效果而設計的；真實句對中，交叉熵與 BLEU 比較一致，進步大約一分或更少。而且 BLEU "
        "高也不等於人覺得翻得好。",
    ),
    again=(
        "leeml fit --config configs/hw5_translation/self_critical.yaml --model.start RUN",
        Said("Go on from a run of your own on HW5's pairs.", "從自己在 HW5 訓練的結果繼續。"),
    ),
    source="Lecture 5 of 2021 (Transformer); Ranzato et al. 2016, ICLR (arXiv 1511.06732); Rennie et al. 2017, CVPR "
    "(arXiv 1612.00563)",
    code=(
        "modules/objectives.py:PolicyGradient",
        "modules/translation/rewards.py:SentenceReward",
        "modules/hw5_translation.py:Translator._sequence_loss",
        "scripts/studies/lab/translation.py:judge_translator",
        "scripts/studies/lab/translation.py:trained",
    ),
    quick=Settings(Size(vocabulary=330, folds=4, judged=200, epochs=20, layers=1)),
    full=Settings(Size(vocabulary=330, folds=4, judged=500, epochs=10), pairs=4000, steps=200),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
)
