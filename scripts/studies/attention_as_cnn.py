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
from datamodules.hw3_food import FoodData
from modules.hw3_food import FoodClassifier
from modules.nets.attention import MultiHeadAttention
from modules.nets.cnn import CNN
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.pooling import MeanPooling
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, across, effect, fact, mean_and_spread
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.fit import fit

NETS = ("CNN", "self-attention")
JUDGED_TRAIN = 1000  # training images that are judged, too, at most


@dataclass(frozen=True)
class Settings:
    """Images: made ones, or photos of food; numbers of examples; both nets; steps for all."""

    sizes: tuple[int, ...] = (64, 512, 4096)
    judged: int = 1000
    photos: bool = False
    side: int = 9
    patch: int = 3
    d_model: int = 32
    heads: int = 4
    layers: int = 2
    channels: tuple[int, ...] = (16, 32)
    steps: int = 250
    batch_size: int = 128
    rate: float = 3e-3
    sharpness: tuple[float, ...] = (0.5, 1, 2, 5, 10, 20, 50)
    accelerator: str = "cpu"
    """See `fit`."""


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


def made_images(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bytes (N, 3, S, S) and classes (N,): one of 8 signs of 5 x 5 pixels somewhere in noise, in some colour."""
    signs = torch.rand(8, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5  # the same for all
    y = torch.randint(8, (count,), generator=generator)
    places = torch.randint(side - 4, (2, count), generator=generator)
    image = torch.zeros(count, side, side)
    rows = torch.arange(count)
    for i in range(5):
        for j in range(5):
            image[rows, places[0] + i, places[1] + j] = signs[y, i, j].float()
    colour = 80 + 80 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 50 + 25 * torch.randn(count, 3, side, side, generator=generator)
    return (noise + colour * image.unsqueeze(1)).clamp(0, 255).byte(), y


MadeData = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], dict[str, Any]]


def made_split(settings: Settings, seed: int) -> MadeData:
    """Images and classes to train on, others to judge by, and facts for the module."""
    generator = torch.Generator().manual_seed(seed)
    x, y = made_images(max(settings.sizes), settings.side, generator)
    pixels = x.double() / 255
    facts = {
        "classes": [str(number) for number in range(8)],
        "mean": pixels.mean((0, 2, 3)).float(),
        "deviation": pixels.std((0, 2, 3)).float(),
    }
    return (x, y), made_images(settings.judged, settings.side, generator), facts


def photo_split(settings: Settings, seed: int, root: Path) -> MadeData:
    """The same of HW3's photos; those to train on in an order by chance."""
    data = FoodData(str(root), image_size=settings.side)
    data.setup("fit")
    held = data.chosen_folds()[0]
    train = torch.from_numpy(np.random.default_rng(seed).permutation(held.train))
    val = torch.from_numpy(held.val)
    assert data.facts is not None
    return (data.pictures[train], data.targets[train]), (data.pictures[val], data.targets[val]), data.facts


@torch.no_grad()
def share_right(module: FoodClassifier, x: Tensor, y: Tensor) -> float:
    """Of images (N, 3, S, S) of classes y (N,)."""
    module.eval()
    said = torch.cat([module(part).argmax(1) for part in x.split(500)])
    return float((said == y).double().mean())


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """How far nine heads are from a convolution, and the accuracy of both nets by number of examples."""
    image, kernel = torch.randn(3, 9, 9).double(), torch.randn(4, 3, 3, 3).double()
    wanted = F.conv2d(image[None], kernel, padding=1)[0]
    found: Measurements = {
        "apart": [float((convolved(image, kernel, a) - wanted).abs().max()) for a in settings.sharpness],
        "sharpness": list(settings.sharpness),
        "sizes": list(settings.sizes),
        "accuracy": {name: [] for name in NETS},
        "train": {name: [] for name in NETS},
        "parameters": {},
    }
    (x, y), (new, answers), facts = photo_split(settings, seed, root) if settings.photos else made_split(settings, seed)
    found["shown"] = x[:18].tolist()
    nets: dict[str, Callable[..., nn.Module]] = {
        "CNN": partial(CNN, channels=settings.channels, hidden=()),
        "self-attention": partial(
            PatchTransformer, side=settings.side, patch=settings.patch, d_model=settings.d_model,
            heads=settings.heads, layers=settings.layers,
        ),
    }  # fmt: skip
    for size in settings.sizes:
        for name, net in nets.items():
            torch.manual_seed(seed)
            module = FoodClassifier(partial(torch.optim.AdamW, lr=settings.rate, fused=True), net)
            module.expect(facts)
            data = Examples(x[:size], y[:size], settings.steps, settings.batch_size, seed)
            fit(module, data, 1, [WarmupScheduler("cosine", warmup=0.1)], settings.accelerator)
            found["accuracy"][name].append(share_right(module, new, answers))
            found["train"][name].append(share_right(module, x[:size][:JUDGED_TRAIN], y[:size][:JUDGED_TRAIN]))
            found["parameters"][name] = sum(p.numel() for p in module.parameters())
    return found


def judge(measurements: list[Measurements]) -> list[Finding]:
    """The equality is exact; 2 of 100 images count as a difference, and 5 as still near."""
    first = measurements[0]
    cnn, attention = (np.array([m["accuracy"][name] for m in measurements]) for name in NETS)
    gap = cnn - attention  # (seeds, sizes)
    least, most = first["sizes"][0], first["sizes"][-1]
    return [
        fact("nine heads give the output of a 3 x 3 convolution (largest distance)",
             float(across(measurements, "apart")[:, -1].max()), 1e-12),
        effect(f"with {least} examples the CNN is right more often (share)", gap[:, 0].tolist(), 0.02),
        effect(f"with {most} attention has caught up some of it (change of the gap)",
               (gap[:, 0] - gap[:, -1]).tolist(), 0.02),
        effect(f"with {most} it is as good as the CNN (share right, up to 0.05 less)", (-gap[:, -1]).tolist(), -0.05),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Where the nine heads look, how near they come to a convolution, some images, and accuracy by examples."""
    drawn = Figure(figsize=(10, 7), layout="constrained")
    parts: Any = drawn.subfigures(2, 2, height_ratios=[1.1, 1.4])
    (looks, pictures), bottom = parts
    first = measurements[0]
    looks.suptitle("where nine heads look for the pixel at +, a = 1", fontsize=10)
    scores = quadratic_scores(7, 7, heads_of(torch.zeros(1, 1, 3, 3))[1], 1.0)
    for axes, weights in zip(looks.subplots(3, 3).flat, scores.softmax(-1)[:, 24], strict=True):
        axes.imshow(weights.view(7, 7), cmap="viridis", vmin=0)
        axes.plot(3, 3, "+", color="white")
        axes.set(xticks=[], yticks=[])
    pictures.suptitle("some training images", fontsize=10)
    for axes, image in zip(pictures.subplots(3, 6).flat, first["shown"], strict=True):
        axes.imshow(np.array(image).transpose(1, 2, 0))
        axes.set_axis_off()
    left, right = (part.subplots() for part in bottom)
    left.loglog(first["sharpness"], across(measurements, "apart").T, "o-", color="tab:purple", alpha=0.6)
    left.set(xlabel="sharpness a", ylabel="largest distance", title="nine heads against F.conv2d (float64)")
    left.set_xticks(first["sharpness"], [f"{a:g}" for a in first["sharpness"]])
    left.tick_params(axis="x", which="minor", bottom=False)
    for name, colour in zip(NETS, ("tab:blue", "tab:red"), strict=True):
        values = np.array([m["accuracy"][name] for m in measurements])
        right.plot(first["sizes"], values.T, color=colour, alpha=0.25, linewidth=0.8)
        right.plot(first["sizes"], values.mean(0), "o-", color=colour, label=name)
    right.set(xscale="log", xlabel="training images", ylabel="share right", title="new images, after as many steps")
    right.set_xticks(first["sizes"], [f"{size:,}" for size in first["sizes"]])
    right.tick_params(axis="x", which="minor", bottom=False)
    right.legend()
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Share of new and of training images right by number of the latter."""
    rows = [
        [
            name,
            measurements[0]["parameters"][name],
            kind,
            *(mean_and_spread(values) for values in np.array([m[key][name] for m in measurements]).T),
        ]
        for name in NETS
        for kind, key in (("new", "accuracy"), ("its own", "train"))
    ]
    sizes = measurements[0]["sizes"]
    return ["net", "parameters", "right on images", *(f"{size:,} to train on" for size in sizes)], rows


STUDY = Study(
    number=13,
    heading="Multi-head Self-attention is CNN Pro Max",
    chinese="多頭自注意力是 CNN 的加強版",
    claim="Nine heads with relative positions make any 3 x 3 convolution; as attention can do more, the CNN wins with "
    "little data, and attention catches up with more.",
    source="Lecture 4 of 2021 (self-attention); Cordonnier et al. 2020, ICLR (arXiv 1911.03584), theorem 1; "
    "Dosovitskiy et al. 2021, ICLR (arXiv 2010.11929)",
    idea="A head whose scores depend on the distance alone, and sharply, fetches the pixel at one place of the kernel "
    "for all pixels at once; the output projection multiplies it with the weights there. Less sharp or moved, it "
    "looks at other ranges than a square: what a CNN is given, attention must learn. The images are made for the "
    "study; <code>--full</code> takes HW3's photos.",
    formula="A<sup>h</sup><sub>qk</sub> = softmax<sub>k</sub>(−a ‖k − q − c<sub>h</sub>‖²), Σ<sub>h</sub> "
    "A<sup>h</sup> X W<sub>h</sub> → conv(X) as a → ∞",
    varies="sharpness of the heads; images to train a CNN and a small vision Transformer (HW3's module)",
    code=(
        "scripts/studies/attention_as_cnn.py:heads_of",
        "scripts/studies/attention_as_cnn.py:quadratic_scores",
        "modules/nets/attention.py:MultiHeadAttention",
    ),
    quick=Settings(),
    full=Settings(
        sizes=(200, 1000, 5000, 9000), photos=True, side=64, patch=8, d_model=128, layers=4,
        channels=(32, 64, 128, 256), steps=3000, rate=1e-3, accelerator="auto",
    ),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw3_food",
    seeds=3,
)  # fmt: skip
