"""Self-attention as more than a convolution: nine heads make any 3 x 3 one, and need more examples to learn.

Settings were changed once after looking: on images of 12 x 12 pixels, 64 a batch, attention was short of steps, not of
examples. Now there are fewer places for a sign, and twice as many images in a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.warmup import WarmupScheduler
from modules.hw3_food import FoodClassifier
from modules.nets.attention import MultiHeadAttention
from modules.nets.cnn import CNN
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.pooling import MeanPooling
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.fit import fit
from scripts.studies.lab.signs import made_images, sign_facts
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, across, mean_and_spread

NETS = ("CNN", "self-attention")
JUDGED_TRAIN = 1000  # training images that are judged, too, at most


@dataclass(frozen=True)
class Settings:
    """Images, both nets, and steps for all.

    Args:
        sizes, judged: Numbers of made images to train on, and how many others judge.
        side, patch: Of images, in pixels.
        steps: Of every fit.
        d_model, heads, layers: Of the Transformer.
        channels: Of the CNN.
        batch_size, rate: Of all fits.
        sharpness: Of the nine heads.
        accelerator: See `fit`.
    """

    sizes: tuple[int, ...] = (64, 4096)
    judged: int = 500
    side: int = 9
    patch: int = 3
    steps: int = 250
    d_model: int = 32
    heads: int = 4
    layers: int = 2
    channels: tuple[int, ...] = (16, 32)
    batch_size: int = 128
    rate: float = 3e-3
    sharpness: tuple[float, ...] = (0.5, 1, 2, 5, 10, 20, 50)
    accelerator: str = "cpu"


# a convolution made of heads


def quadratic_scores(height: int, width: int, centres: Tensor, sharpness: float) -> Tensor:
    """Scores -a |k - q - c|^2 of pixels k for pixels q (Cordonnier et al. 2020, eq. 9), up to a constant a query.

    Args:
        height, width: Of the image, whose pixels are counted row by row.
        centres: c of each head, (heads, 2): the pixel it looks at, relative to the query.
        sharpness: a; the weight of all other pixels falls as exp(-a).

    Returns:
        (heads, H W, H W), queries before keys.
    """
    grid = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(centres.dtype)
    distance = grid[None] - grid[:, None]  # (queries, keys, 2)
    return -sharpness * (distance - centres[:, None, None]).square().sum(-1)


def heads_of(kernel: Tensor) -> tuple[MultiHeadAttention, Tensor]:
    """Attention whose heads each bring the pixel under one weight of a kernel (O, C, 3, 3), and their centres (9, 2).

    Its width is 9 max(O, C): a head is as wide as a pixel. Queries and keys are 0, so that positions alone decide;
    values are the pixel's channels; the output projection of head h holds the kernel's weights at its place.
    """
    out, channels = kernel.shape[:2]
    wide = max(out, channels)
    attention = MultiHeadAttention(9 * wide, 9, bias=False).to(kernel.dtype)
    with torch.no_grad():
        attention.in_proj_weight.zero_()
        attention.out_proj.weight.zero_()
        for head, weights in enumerate(kernel.flatten(2).unbind(2)):  # (O, C) each
            first = head * wide
            attention.in_proj_weight[18 * wide + first :][:channels, :channels] = torch.eye(channels)
            attention.out_proj.weight[:out, first : first + channels] = weights
    return attention, torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(kernel.dtype)


@torch.no_grad()
def convolved(image: Tensor, kernel: Tensor, sharpness: float) -> Tensor:
    """F.conv2d(image, kernel, padding=1) by attention: (C, H, W), (O, C, 3, 3) -> (O, H, W)."""
    attention, centres = heads_of(kernel)
    around = F.pad(image, (1, 1, 1, 1))  # the zeros that a convolution sees beyond the border
    height, width = around.shape[1:]
    pixels = F.pad(around.flatten(1).T, (0, attention.d_model - len(image)))
    out = attention(pixels[None], bias=quadratic_scores(height, width, centres, sharpness))
    return out[0].T.unflatten(1, (height, width))[: len(kernel), 1:-1, 1:-1]


# few and many examples


class PatchTransformer(nn.Module):
    """A small vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): patches, learned positions, their mean.

    Args:
        num_classes: Width of the output.
        side, patch: Of the square images and patches, in pixels.
        d_model, heads, layers: Of the encoder.
    """

    def __init__(self, num_classes: int, side: int, patch: int, d_model: int, heads: int, layers: int) -> None:
        super().__init__()
        self.patch = patch
        self.encoder = TransformerFrames(
            3 * patch**2, d_model, heads, 2 * d_model, layers, dropout=0.0, norm="pre", positions="learned",
            max_length=(side // patch) ** 2,
        )  # fmt: skip
        self.pool = MeanPooling(d_model)
        self.last = nn.Linear(d_model, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images, (B, 3, S, S) -> (B, num_classes)."""
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        return self.last(self.pool(self.encoder(patches)))


MadeData = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], dict[str, Any]]


def made_split(settings: Settings, seed: int) -> MadeData:
    """Images and classes to train on, others to judge by, and facts for the module."""
    generator = torch.Generator().manual_seed(seed)
    x, y = made_images(max(settings.sizes), settings.side, generator)
    return (x, y), made_images(settings.judged, settings.side, generator), sign_facts(x)


@torch.no_grad()
def share_right(module: FoodClassifier, x: Tensor, y: Tensor) -> float:
    """Of images (N, 3, S, S) of classes y (N,)."""
    module.eval()
    said = torch.cat([module(part).argmax(1) for part in x.split(500)])
    return float((said == y).double().mean())


def shares_right(settings: Settings, seed: int, images: MadeData, size: int) -> Measurements:
    """Both nets after a fit on so many images: share right of new ones and of their own, and their parameters."""
    (x, y), (new, answers), facts = images
    nets: dict[str, Callable[..., nn.Module]] = {
        "CNN": partial(CNN, channels=settings.channels, hidden=()),
        "self-attention": partial(
            PatchTransformer, side=settings.side, patch=settings.patch, d_model=settings.d_model,
            heads=settings.heads, layers=settings.layers,
        ),
    }  # fmt: skip
    found: Measurements = {"new": {}, "own": {}, "parameters": {}, "size": size}
    for name, net in nets.items():
        torch.manual_seed(seed)
        module = FoodClassifier(partial(torch.optim.AdamW, lr=settings.rate, fused=True), net)
        module.expect(facts)
        data = Examples(x[:size], y[:size], settings.steps, settings.batch_size, seed)
        fit(module, data, 1, [WarmupScheduler("cosine", warmup=0.1)], settings.accelerator)
        found["new"][name] = share_right(module, new, answers)
        found["own"][name] = share_right(module, x[:size][:JUDGED_TRAIN], y[:size][:JUDGED_TRAIN])
        found["parameters"][name] = sum(p.numel() for p in module.parameters())
    return found


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """How far nine heads are from a convolution, and the accuracy of both nets by number of examples."""
    image, kernel = torch.randn(3, 9, 9).double(), torch.randn(4, 3, 3, 3).double()
    wanted = F.conv2d(image[None], kernel, padding=1)[0]
    made = made_split(settings, seed)
    return {
        "apart": [float((convolved(image, kernel, a) - wanted).abs().max()) for a in settings.sharpness],
        "sharpness": list(settings.sharpness),
        "shown": made[0][0][:8].tolist(),
        "signs": [shares_right(settings, seed, made, size) for size in settings.sizes],
    }


def ahead(found: Measurements) -> float:
    """By how much larger a share of new images the CNN names right."""
    return found["new"]["CNN"] - found["new"]["self-attention"]


OF_IMAGES = Said("percentage points more of the images right", "個百分點的圖片")
STATEMENTS = (
    Statement(
        Said(
            "Nine heads that each look at one neighbour give exactly the output of a 3 x 3 convolution.",
            "九個 head 各看一個鄰居，輸出就與 3 x 3 卷積完全相同。",
        ),
        lambda found: found["apart"][-1], 1e-12, Said("apart", "的距離"), kind="exact",
    ),
    Statement(
        Said(
            "With few images to learn from, the CNN names more new images right than self-attention.",
            "訓練圖片很少時，CNN 認對的新圖片比自注意力多。",
        ),
        lambda found: ahead(found["signs"][0]), 0.02, OF_IMAGES, "share",
    ),
    Statement(
        Said(
            "The more images there are, the smaller is the CNN's lead.",
            "訓練圖片越多，CNN 領先得越少。",
        ),
        lambda found: ahead(found["signs"][0]) - ahead(found["signs"][-1]), 0.02,
        Said("percentage points of lead lost", "個百分點的領先消失"), "share",
    ),
    Statement(
        Said(
            "With the most images self-attention is at most 5 percentage points behind.",
            "圖片最多時，自注意力最多只落後 5 個百分點。",
        ),
        lambda found: ahead(found["signs"][-1]), 0.05, Said("percentage points behind", "個百分點的落後"), "share",
        "at most",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Where the nine heads look, how near they come to a convolution, some images, and accuracy by examples."""
    drawn = Figure(figsize=(8, 8), layout="constrained")
    parts: Any = drawn.subfigures(2, 2, height_ratios=[1, 1.2])
    (looks, pictures), bottom = parts
    first = measurements[0]
    looks.suptitle("where nine heads look for the pixel +", fontsize=11)
    scores = quadratic_scores(7, 7, heads_of(torch.zeros(1, 1, 3, 3))[1], 1.0)
    for axes, weights in zip(looks.subplots(3, 3).flat, scores.softmax(-1)[:, 24], strict=True):
        axes.imshow(weights.view(7, 7), cmap="viridis", vmin=0)
        axes.plot(3, 3, "+", color="white")
        axes.set(xticks=[], yticks=[])
    pictures.suptitle("images to learn from: a sign in noise", fontsize=11)
    for axes, image in zip(pictures.subplots(2, 4).flat, first["shown"], strict=True):
        axes.imshow(np.array(image).transpose(1, 2, 0))
        axes.set_axis_off()
    left, right = (part.subplots() for part in bottom)
    left.loglog(first["sharpness"], across(measurements, "apart").T, "o-", color="tab:purple", alpha=0.6)
    left.set(xlabel="sharpness a of the heads", ylabel="largest distance", title="nine heads and a convolution")
    left.set_xticks(first["sharpness"], [f"{a:g}" for a in first["sharpness"]])
    left.tick_params(axis="x", which="minor", bottom=False)
    sizes = [found["size"] for found in first["signs"]]
    for name, colour in zip(NETS, ("tab:blue", "tab:red"), strict=True):
        values = 100 * np.array([[found["new"][name] for found in m["signs"]] for m in measurements])
        right.errorbar(sizes, values.mean(0), values.std(0), fmt="o-", color=colour, capsize=3, label=name)
    right.set(xscale="log", xlabel="images to learn from", ylabel="new images right (%)", title="few and many images")
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.tick_params(axis="x", which="minor", bottom=False)
    right.legend(fontsize=9)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Share of new and of training images right by number of the latter."""
    rows: list[list[Any]] = []
    first = measurements[0]
    for name in NETS:
        for kind in ("new", "own"):
            signs = np.array([[found[kind][name] for found in m["signs"]] for m in measurements])
            count = first["signs"][0]["parameters"][name]
            rows.append([name, count, kind, *map(mean_and_spread, signs.T)])
    sizes = [f"{found['size']:,} signs" for found in first["signs"]]
    return ["net", "parameters", "share right of images", *sizes], rows


STUDY = Study(
    number=13,
    heading=Said("Multi-head Self-attention is CNN Pro Max", "多頭自注意力是 CNN 的加強版"),
    lecture=Said(
        "A neuron of a CNN sees a small square that people have chosen. Self-attention looks over the whole image and "
        "learns by itself which pixels matter, so a CNN is self-attention with restrictions. A model that can do more "
        "also overfits more easily: with few images the CNN is better, with many self-attention catches up.",
        "CNN 的神經元只看人決定好的一小塊。自注意力看整張圖，自己學哪些像素重要，所以 CNN 是有限制的自注意力。"
        "模型彈性越大越容易過擬合：圖片少時 CNN 較好，圖片多時自注意力追上。",
    ),
    formula="A<sup>h</sup><sub>qk</sub> = softmax<sub>k</sub>(−a ‖k − q − c<sub>h</sub>‖²), Σ<sub>h</sub> "
    "A<sup>h</sup> X W<sub>h</sub> → conv(X) as a → ∞",
    varies=Said(
        "How sharply the nine heads look; and the number of images on which HW3's module learns, with a CNN and with a "
        "small vision Transformer, in as many steps. The images are made for the study: one of 8 signs somewhere in "
        "noise.",
        "九個 head 看得多集中；以及訓練圖片的張數：HW3 的模組，一個用 CNN，一個用小的 vision Transformer，步數相同。"
        "圖片是為這個實驗產生的：8 種符號之一，出現在雜訊中的任何位置。",
    ),
    caption=Said(
        "Above: where each of the nine heads looks, and images to learn from. Below left: how far the nine heads are "
        "from a convolution, the sharper they look. Below right: new images that each net names right.",
        "上：九個 head 各看哪裡，以及訓練用的圖片。左下：head 看得越集中，與卷積的差距。右下：各網路認對的新圖片。",
    ),
    doubt=Said(
        "The signs are easy, so 4,096 images are many. On photos a vision Transformer needs millions of them, or "
        "augmentation and a good recipe (Dosovitskiy 2021, Touvron 2021). That heads <em>can</em> be a convolution "
        "does not say that training finds one.",
        "這些符號很簡單，4,096 張就算多。照片則需要幾百萬張，或資料增強與好的訓練方法（Dosovitskiy 2021、"
        "Touvron 2021）。"
        "head <em>可以</em>變成卷積，不代表訓練真的會找到卷積。",
    ),
    again=(
        "leeml fit --config configs/hw3_food/medium.yaml",
        Said("HW3's CNN on your photos.", "在照片上訓練 HW3 的 CNN。"),
    ),
    source="Lecture 4 of 2021 (self-attention); Cordonnier et al. 2020, ICLR (arXiv 1911.03584), theorem 1; "
    "Dosovitskiy et al. 2021, ICLR (arXiv 2010.11929)",
    code=(
        "scripts/studies/attention_as_cnn.py:heads_of",
        "scripts/studies/attention_as_cnn.py:quadratic_scores",
        "modules/nets/attention.py:MultiHeadAttention",
    ),
    quick=Settings(),
    full=Settings(sizes=(64, 256, 1024, 4096, 16384), side=12, steps=600, judged=2000, accelerator="auto"),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    full_looks=(4, 8),
)  # fmt: skip
