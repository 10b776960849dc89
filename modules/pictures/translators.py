"""Pictures of a translator's work: what each word looked at, how good long sentences are, which places are alike."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from modules.pictures.style import colour_bar, printable, with_fonts
from modules.translation.detokenize import CJK
from modules.translation.scores import CorpusScore

BINS = (5, 10, 15, 20, 30)  # source words at which a new bar of BLEU by length begins
PIECE = 0.1  # inches of a row or column of attention
WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


@with_fonts
def cross_attention_maps(layers: dict[str, Tensor], source: Sequence[str], target: Sequence[str]) -> Figure:
    """Where each word of a translation looked in its source, a panel a layer and head.

    Args:
        layers: Name -> weights (heads, T, S).
        source: S pieces.
        target: T pieces, each in the row that said it.
    """
    heads = max(len(maps) for maps in layers.values())
    width, height = (max(1.0, PIECE * len(side)) for side in (source, target))
    figure = Figure(figsize=(1 + width * heads, 1 + (0.2 + height) * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), heads, subplot_kw={"xticks": [], "yticks": []}, squeeze=False)
    columns, rows = ([printable(piece.replace("▁", "_")) for piece in side] for side in (source, target))
    for axes in panels[-1]:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    for axes in panels[:, 0]:
        axes.set_yticks(range(len(rows)), rows, fontsize=6)
    for line, (name, maps) in zip(panels, layers.items(), strict=True):
        for axes in line[len(maps) :]:
            axes.set_axis_off()
        for head, (axes, weights) in enumerate(zip(line, maps, strict=False), 1):
            # by the root: a head that looks everywhere a little would be black beside one that looks at one place
            image = axes.imshow(weights.numpy(), cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=1))
            axes.set_title(name if len(maps) == 1 else f"{name}, head {head}", fontsize=8)
        line[0].set_ylabel("output (tokens)", fontsize=8)
        colour_bar(line[len(maps) - 1], image, "weight")
    for axes in panels[-1]:
        axes.set_xlabel("source (tokens)", fontsize=8)
    return figure


def bleu_by_length(sources: Sequence[str], said: Sequence[str], references: Sequence[str], language: str) -> Figure:
    """BLEU of the sentences whose source has so many words, with their number.

    Args:
        sources: Of the translations; words are what stands between spaces, in Chinese single characters.
        said: Translations.
        references: One each.
        language: Of the translations.
    """
    group = np.searchsorted(BINS, [len(WORD.findall(source)) for source in sources], side="right")
    names = [f"< {BINS[0]}", *(f"{a} to {b - 1}" for a, b in itertools.pairwise(BINS)), f"{BINS[-1]} +"]
    judge = CorpusScore("bleu", language).judge  # the metric itself would wait for the other ranks
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for place in range(len(names)):
        chosen = np.flatnonzero(group == place).tolist()
        height = (
            judge.corpus_score([said[i] for i in chosen], [[references[i] for i in chosen]]).score if chosen else 0.0
        )
        axes.bar(place, height, color="tab:blue")
        label = f"{height:.1f}\n{len(chosen)} sentences" if chosen else "none"
        axes.text(place, height, label, ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="length of the source (words)", ylabel="BLEU (0 to 100)")
    axes.set_ylim(0, 1.15 * max(1.0, axes.dataLim.y1))
    return figure


def position_similarity(vectors: Tensor) -> Figure:
    """Cosine of the vectors (N, D) of every two positions, as a picture (N, N)."""
    unit = F.normalize(vectors.float(), dim=1)
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow((unit @ unit.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
    figure.colorbar(image, label="cosine similarity")
    axes.set(xlabel="position (token)", ylabel="position (token)")
    return figure
