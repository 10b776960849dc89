"""A convolution is a fully connected layer with a mask and shared weights; what that saves; nets without pooling."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.hw3_food import FoodData
from modules.hw3_food import FoodClassifier
from modules.nets.cnn import CNN
from scripts.studies.lab import recorded
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, effect, fact, mean_and_spread
from scripts.studies.lab.fit import fit

Kind = Literal["fully connected", "receptive fields", "convolution"]
SHRINKS: tuple[Literal["pool", "stride"], ...] = ("pool", "stride")


@dataclass(frozen=True)
class Settings:
    """The nets of one layer, HW3's CNN, and how they are trained.

    Args:
        side, filters, epochs: Of the images that nets of one layer see, of that layer, and of their fits.
        pooled_side, channels, pooled_epochs: Of the images that the CNN sees, of its blocks, and of its fits.
        rate: Adam's.
        batch: Images of a step.
        accelerator: See `fit`.
    """

    side: int = 16
    filters: int = 8
    epochs: int = 20
    pooled_side: int = 32
    channels: tuple[int, ...] = (16, 32, 32)
    pooled_epochs: int = 15
    rate: float = 1e-3
    batch: int = 32
    accelerator: str = "cpu"


def receptive_fields(channels: int, side: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Which weight of a filter (C k k) a neuron gives to an input, -1 for none: (positions, C H W), int64.

    Args:
        channels, side: C, and H = W.
        kernel, stride, padding: Of the convolution; k is the kernel.
    """
    inputs = channels * side**2
    pixels = torch.arange(1.0, inputs + 1, dtype=torch.float64).view(1, channels, side, side)  # 0 is the padding
    seen = F.unfold(pixels, kernel, stride=stride, padding=padding)[0].long()  # (C k k, positions)
    table = torch.full((seen.shape[1], inputs + 1), -1)
    table.scatter_(1, seen.mT, torch.arange(len(seen)).expand(seen.shape[1], -1))
    return table[:, 1:]


def as_matrix(filters: Tensor, fields: Tensor) -> Tensor:
    """The fully connected layer (O x positions, C H W) that a convolution with filters (O, C k k) is."""
    return (filters[:, fields.clamp(min=0)] * (fields >= 0)).flatten(0, 1)


class ImageLayer(nn.Module):
    """A layer of neurons on images, (B, C, H, W) -> (B, O x positions), all by one matrix.

    A fully connected one has a weight for every pair; with receptive fields the mask leaves few of them; a
    convolution has the same few at every position.

    Args:
        kind: Which of them.
        filters: O, neurons at a position.
        fields: See `receptive_fields`.
    """

    def __init__(self, kind: Kind, filters: int, fields: Tensor) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("fields", fields, persistent=False)
        size = int(fields.max()) + 1
        full = (filters * len(fields), fields.shape[1])
        bound = (full[1] if kind == "fully connected" else size) ** -0.5
        self.weight = nn.Parameter(torch.empty((filters, size) if kind == "convolution" else full))
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(filters, 1 if kind == "convolution" else len(fields)))

    def matrix(self) -> Tensor:
        """(O x positions, C H W)."""
        fields: Any = self.fields
        if self.kind == "convolution":
            return as_matrix(self.weight, fields)
        if self.kind == "fully connected":
            return self.weight
        return self.weight * (fields >= 0).repeat(len(self.bias), 1)

    @property
    def weights(self) -> int:
        """How many weights there are to learn, without biases."""
        fields: Any = self.fields
        if self.kind == "receptive fields":
            return len(self.bias) * int((fields >= 0).sum())
        return self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O x positions)."""
        fields: Any = self.fields
        return F.linear(x.flatten(1), self.matrix(), self.bias.expand(-1, len(fields)).flatten())


def apart_from_conv(seed: int) -> tuple[float, float]:
    """Largest distances of matrices from nn.Conv2d, of outputs and of gradients, over strides and paddings."""
    generator = torch.Generator().manual_seed(seed)
    outputs, gradients = 0.0, 0.0
    for kernel, stride, padding in ((3, 1, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (2, 2, 0)):
        conv = nn.Conv2d(3, 4, kernel, stride, padding, bias=False, dtype=torch.float64)
        x = torch.randn((2, 3, 9, 9), generator=generator, dtype=torch.float64)
        filters = conv.weight.detach().flatten(1).requires_grad_()
        ours = F.linear(x.flatten(1), as_matrix(filters, receptive_fields(3, 9, kernel, stride, padding)))
        theirs = conv(x).flatten(1)
        outputs = max(outputs, float((ours - theirs).detach().abs().max()))
        wanted = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
        (theirs * wanted).sum().backward()
        (own,) = torch.autograd.grad((ours * wanted).sum(), filters)
        assert conv.weight.grad is not None
        gradients = max(gradients, float((own - conv.weight.grad.flatten(1)).abs().max()))
    return outputs, gradients


def lecture_counts() -> dict[Kind, int]:
    """Weights of 1,000 neurons on an image of 3 x 100 x 100: all of them, 3 x 3 x 3 each, and those of 10 filters."""
    full = nn.Linear(3 * 100 * 100, 1000, device="meta")
    conv = nn.Conv2d(3, 10, 3, stride=10, device="meta")
    neurons = conv(torch.empty((1, 3, 100, 100), device="meta")).numel()
    return {
        "fully connected": full.weight.numel(),
        "receptive fields": neurons * conv.weight[0].numel(),
        "convolution": conv.weight.numel(),
    }


def one_layer(kind: Kind, settings: Settings, num_classes: int) -> nn.Module:
    """A layer of 3 x 3 receptive fields at every second pixel, or its fully connected likeness, and a linear one."""
    layer = ImageLayer(kind, settings.filters, receptive_fields(3, settings.side, 3, 2, 1))
    fields: Any = layer.fields
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(settings.filters * len(fields), num_classes))


@torch.no_grad()
def accuracy(module: FoodClassifier, batches: Iterable[dict[str, Tensor]]) -> float:
    """Share of images named right, in evaluation mode."""
    module.eval()
    right = torch.cat([module(batch["x"]).argmax(1) == batch["y"] for batch in batches])
    return float(right.double().mean())


def trained(settings: Settings, net: Any, side: int, epochs: int, seed: int, root: Path) -> tuple[Any, Any]:
    """HW3's module after a fit, and its data."""
    torch.manual_seed(seed)
    module: Any = FoodClassifier(partial(torch.optim.Adam, lr=settings.rate), net)
    data: Any = FoodData(str(root), seed=seed, folds=3, image_size=side, batch_size=settings.batch)
    fit(module, data, epochs, accelerator=settings.accelerator)
    return module, data


def accuracies(module: Any, data: Any) -> tuple[float, float]:
    """Accuracy on training images and on those held out."""
    return accuracy(module, data.train_dataloader()), accuracy(module, data.val_dataloader())


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Distances from nn.Conv2d, counts, and accuracies of the three kinds of layer and of CNNs."""
    outputs, gradients = apart_from_conv(seed)
    found: Measurements = {"outputs": outputs, "gradients": gradients, "counts": lecture_counts()}
    found |= {"weights": {}, "layers": {}, "pooling": {}}
    for kind in get_args(Kind):
        layer: Any = one_layer(kind, settings, 1)
        found["weights"][kind] = layer[0].weights
        net = partial(one_layer, kind, settings)
        module, held_out = trained(settings, net, settings.side, settings.epochs, seed, root)
        found["layers"][kind] = accuracies(module, held_out)
        if kind == "convolution":
            found["walk"] = recorded.filters(module, next(iter(held_out.val_dataloader()))["x"][0])
    for shrink in SHRINKS:
        cnn = partial(CNN, channels=settings.channels, hidden=(64,), shrink=shrink)
        fitted = trained(settings, cnn, settings.pooled_side, settings.pooled_epochs, seed, root)
        found["pooling"][shrink] = accuracies(*fitted)
    return found


def values(measurements: list[Measurements], group: str, name: str) -> np.ndarray:
    """Accuracies (seeds, 2) in training and held out."""
    return np.array([m[group][name] for m in measurements])


def judge(measurements: list[Measurements]) -> list[Finding]:
    """Equality is exact; 0.05 of accuracy counts, and 0.1 for pooling, as a net of few images is uncertain."""
    counts = measurements[0]["counts"]
    wanted = {"fully connected": 3 * 10**7, "receptive fields": 27_000, "convolution": 270}
    full, conv = (values(measurements, "layers", kind) for kind in ("fully connected", "convolution"))
    pool, stride = (values(measurements, "pooling", shrink) for shrink in SHRINKS)
    return [
        fact("the masked, shared matrix gives the convolution's outputs (distance)",
             max(m["outputs"] for m in measurements), 1e-12),
        fact("and its gradients, so that they stay equal while they learn (distance)",
             max(m["gradients"] for m in measurements), 1e-12),
        fact("1,000 neurons on 3 x 100 x 100 have 30,000,000 weights, 27,000 in 3 x 3 fields, 270 shared (error)",
             max(abs(counts[kind] - count) for kind, count in wanted.items()), 0),
        effect("on held-out images a convolution is right more often than a fully connected layer (difference)",
               (conv[:, 1] - full[:, 1]).tolist(), 0.05),
        effect("its accuracy falls less from training to held-out images (difference of gaps)",
               (full[:, 0] - full[:, 1] - conv[:, 0] + conv[:, 1]).tolist(), 0.05),
        effect("strided convolutions in place of pooling are right no less often (difference, down to -0.1)",
               (stride[:, 1] - pool[:, 1]).tolist(), -0.1),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """The matrix of a small convolution, weights and accuracies by kind of layer, and pooling."""
    drawn = Figure(figsize=(11, 4), layout="constrained")
    matrix, layers, pooling = drawn.subplots(1, 3, width_ratios=[4, 4, 2])
    fields = receptive_fields(1, 6, 3, 1, 0)
    matrix.imshow(np.ma.masked_less(fields.numpy(), 0), cmap="tab10", vmin=-0.5, vmax=9.5)
    matrix.set(
        xlabel="pixel of a 6 x 6 image", ylabel="neuron", title="3 x 3 convolution as a matrix\n(a colour is a weight)"
    )
    kinds = list(get_args(Kind))
    for group, axes, names in (("layers", layers, kinds), ("pooling", pooling, list(SHRINKS))):
        for part, shift, colour, label in ((0, -0.2, "0.75", "training"), (1, 0.2, "tab:purple", "held out")):
            found = np.array([values(measurements, group, name)[:, part] for name in names])
            axes.bar(np.arange(len(names)) + shift, found.mean(1), 0.38, yerr=found.std(1), capsize=3, color=colour,
                     label=label)  # fmt: skip
        axes.set_ylim(0, 1.2)
    weights = measurements[0]["weights"]
    layers.set_xticks(range(len(kinds)), [f"{kind}\n{weights[kind]:,} weights" for kind in kinds], fontsize=8)
    layers.set(ylabel="accuracy", title="one layer and a linear one")
    layers.legend(fontsize=8, loc="upper center", ncols=2)
    pooling.set_xticks(range(2), ["pooling", "strides"])
    pooling.set_title("CNN of HW3")
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Weights and accuracies of each network."""
    first = measurements[0]
    rows: list[list[Any]] = []
    for kind in get_args(Kind):
        cells = map(mean_and_spread, values(measurements, "layers", kind).T)
        rows.append([kind, f"{first['counts'][kind]:,}", f"{first['weights'][kind]:,}", *cells])
    for shrink in SHRINKS:
        rows.append([f"CNN, {shrink}", "–", "–", *map(mean_and_spread, values(measurements, "pooling", shrink).T)])
    return ["layer", "weights, lecture", "weights here", "training accuracy", "held-out accuracy"], rows


STUDY = Study(
    number=12,
    heading="CNN",
    chinese="卷積神經網路",
    claim="A convolution is a fully connected layer with receptive fields and shared weights, exactly; with a fraction "
    "of the weights it names images better, because it overfits less; pooling can be left out.",
    source="Lecture 6 of 2021; LeCun et al. 1998, Proceedings of the IEEE 86; Springenberg et al. 2015 (arXiv "
    "1412.6806); Silver et al. 2016, Nature 529",
    idea="A pattern is small, so a neuron need not see the whole image: all weights outside its receptive field are 0. "
    "The same pattern may lie anywhere, so neurons at different places share weights. Both only take freedom from a "
    "fully connected layer. Pooling makes the map smaller and keeps no more than the largest value; strides make it as "
    "small without, as a Go board would need it.",
    formula="y = W x, with W<sub>i j</sub> = k<sub>n(i, j)</sub> where pixel j lies at place n of neuron i's receptive "
    "field, else 0",
    varies="mask and sharing of one layer; pooling or strides in HW3's CNN",
    code=("scripts/studies/cnn.py:as_matrix", "scripts/studies/cnn.py:ImageLayer", "modules/nets/cnn.py:CNN"),
    quick=Settings(),
    full=Settings(
        side=32, filters=16, epochs=30, pooled_side=64, channels=(32, 64, 128, 128), pooled_epochs=30, batch=64,
        accelerator="auto",
    ),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw3_food",
    seeds=5,
)  # fmt: skip
