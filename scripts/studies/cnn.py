"""A convolution is a fully connected layer with a mask and shared weights; what that saves; nets without pooling."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullLocator
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.hw3_food import FoodData
from modules.hw3_food import FoodClassifier
from modules.nets.cnn import CNN
from scripts.studies.lab import recorded
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.fit import fit
from scripts.studies.lab.signs import made_images, sign_facts
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Play, Study, Table, mean_and_spread

Kind = Literal["fully connected", "receptive fields", "convolution"]
SHRINKS: tuple[Literal["pool", "stride"], ...] = ("pool", "stride")


@dataclass(frozen=True)
class Settings:
    """The nets of one layer, HW3's CNN, and how they are trained.

    Args:
        photos, epochs: Whether the nets of one layer see HW3's photos in place of made images, and how often.
        side: Of all images.
        filters, images, layer_steps: Of the layer, made images that it learns from, and steps of its fit.
        channels, signs, steps: Of the CNN's blocks, images that it learns from, few and many, and steps of its fit.
        judged: Made images that judge.
        rate: Adam's.
        batch: Images of a step.
        accelerator: See `fit`.
    """

    photos: bool = False
    epochs: int = 20
    side: int = 12
    filters: int = 16
    images: int = 1024
    layer_steps: int = 200
    channels: tuple[int, ...] = (16, 32)
    signs: tuple[int, ...] = (128, 4096)
    steps: int = 300
    judged: int = 500
    rate: float = 3e-3
    batch: int = 64
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


class LargestOfEach(nn.Module):
    """The largest output of each filter's neurons, (B, O x positions) -> (B, O)."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, x: Tensor) -> Tensor:
        """Neurons of a filter stand side by side, (B, O x positions) -> (B, O)."""
        return x.unflatten(1, (self.filters, -1)).amax(2)


def one_layer(kind: Kind, settings: Settings, num_classes: int) -> nn.Module:
    """A layer of 3 x 3 fields at every pixel, or its fully connected likeness; each filter's largest; a linear one."""
    layer = ImageLayer(kind, settings.filters, receptive_fields(3, settings.side, 3, 1, 1))
    return nn.Sequential(layer, nn.ReLU(), LargestOfEach(settings.filters), nn.Linear(settings.filters, num_classes))


@torch.no_grad()
def accuracy(module: FoodClassifier, batches: Iterable[dict[str, Tensor]]) -> float:
    """Share of images named right, in evaluation mode."""
    module.eval()
    right = torch.cat([module(batch["x"]).argmax(1) == batch["y"] for batch in batches])
    return float(right.double().mean())


class Fitted(NamedTuple):
    """HW3's module after a fit, batches of the images that it learned from, and of new ones."""

    module: Any
    learned: Iterable[dict[str, Tensor]]
    new: Iterable[dict[str, Tensor]]


def module_for(settings: Settings, net: Any, seed: int) -> Any:
    """HW3's module around a network, with Adam."""
    torch.manual_seed(seed)
    return FoodClassifier(partial(torch.optim.Adam, lr=settings.rate), net)


def on_made_images(settings: Settings, net: Any, count: int, steps: int, seed: int) -> Fitted:
    """A fit to so many made images; whatever the number, the new ones are the same."""
    generator = torch.Generator().manual_seed(seed)
    new, answers = made_images(settings.judged, settings.side, generator)
    x, y = made_images(count, settings.side, generator)
    module = module_for(settings, net, seed)
    module.expect(sign_facts(x))
    fit(module, Examples(x, y, steps, settings.batch, seed), 1, accelerator=settings.accelerator)
    return Fitted(module, [{"x": x, "y": y}], [{"x": new, "y": answers}])


def on_photos(settings: Settings, net: Any, seed: int, root: Path) -> Fitted:
    """A fit to HW3's photos of two folds; those of the third are new."""
    data: Any = FoodData(str(root), seed=seed, folds=3, image_size=settings.side, batch_size=settings.batch)
    module = module_for(settings, net, seed)
    fit(module, data, settings.epochs, accelerator=settings.accelerator)
    return Fitted(module, data.train_dataloader(), data.val_dataloader())


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Distances from nn.Conv2d, counts, and accuracies of the three kinds of layer and of CNNs."""
    outputs, gradients = apart_from_conv(seed)
    found: Measurements = {"outputs": outputs, "gradients": gradients, "counts": lecture_counts()}
    found |= {"weights": {}, "layers": {}, "sizes": list(settings.signs), "pooling": {}}
    for kind in get_args(Kind):
        net = partial(one_layer, kind, settings)
        if settings.photos:
            fitted = on_photos(settings, net, seed, root)
        else:
            fitted = on_made_images(settings, net, settings.images, settings.layer_steps, seed)
        found["weights"][kind] = fitted.module.net[0].weights
        found["layers"][kind] = accuracy(fitted.module, fitted.learned), accuracy(fitted.module, fitted.new)
        if kind == "convolution":
            found["walk"] = recorded.filters(fitted.module, next(iter(fitted.new))["x"][0])
    for shrink in SHRINKS:
        cnn = partial(CNN, channels=settings.channels, hidden=(), shrink=shrink)
        fits = [on_made_images(settings, cnn, count, settings.steps, seed) for count in settings.signs]
        found["pooling"][shrink] = [accuracy(fitted.module, fitted.new) for fitted in fits]
    return found


def values(measurements: list[Measurements], group: str, name: str) -> np.ndarray:
    """Accuracies (seeds, 2): of a layer in training and on new images, of a CNN with few and with many images."""
    return np.array([m[group][name] for m in measurements])


LECTURE: dict[Kind, int] = {"fully connected": 3 * 10**7, "receptive fields": 27_000, "convolution": 270}
APART, OF_ACCURACY = Said("apart", "的差距"), Said("percentage points of accuracy", "個百分點的正確率")


def gap(found: Measurements, kind: Kind) -> float:
    """By how much the accuracy of a kind of layer falls from training to new images."""
    train, new = found["layers"][kind]
    return train - new


STATEMENTS = (
    Statement(
        Said(
            "A fully connected layer whose weights are masked and shared gives exactly a convolution's outputs.",
            "全連接層把權重遮罩並共用之後，輸出與卷積完全相同。",
        ),
        lambda found: found["outputs"], 1e-12, APART, kind="exact",
    ),
    Statement(
        Said(
            "It gives its gradients, too, so that both stay equal while they learn.",
            "梯度也完全相同，所以學習過程中兩者一直相等。",
        ),
        lambda found: found["gradients"], 1e-12, APART, kind="exact",
    ),
    Statement(
        Said(
            "1,000 neurons on an image of 3 x 100 x 100 have 30,000,000 weights, 27,000 with receptive fields of 3 x "
            "3, and 270 where these are shared.",
            "1,000 個神經元看 3 x 100 x 100 的圖，全連接有 30,000,000 個權重，3 x 3 感受野有 27,000 個，"
            "共用之後剩 270 個。",
        ),
        lambda found: max(abs(found["counts"][kind] - count) for kind, count in LECTURE.items()), 0,
        Said("weights of difference", "個權重的差異"), kind="exact",
    ),
    Statement(
        Said(
            "A layer of convolutions names more new images right than a fully connected one with many times its "
            "weights.",
            "卷積層認對的新圖片，比權重多很多倍的全連接層還多。",
        ),
        lambda found: found["layers"]["convolution"][1] - found["layers"]["fully connected"][1], 0.02, OF_ACCURACY,
        "share",
    ),
    Statement(
        Said(
            "It overfits less: its accuracy falls less from training images to new ones.",
            "卷積層比較不會過擬合：從訓練圖片到新圖片，正確率掉得比較少。",
        ),
        lambda found: gap(found, "fully connected") - gap(found, "convolution"), 0.02,
        Said("percentage points less", "個百分點（少掉這麼多）"), "share",
    ),
    Statement(
        Said(
            "With few images pooling helps: with strides in its place a CNN loses at least 5 percentage points of "
            "accuracy.",
            "圖片很少時，pooling 有幫助：改用 stride 的 CNN 至少少 5 個百分點的正確率。",
        ),
        lambda found: found["pooling"]["pool"][0] - found["pooling"]["stride"][0], 0.05,
        Said("percentage points lost", "個百分點的損失"), "share",
    ),
    Statement(
        Said(
            "On thousands of images pooling can be left out: with strides a CNN loses at most 5 percentage points.",
            "圖片有幾千張時，pooling 可以不用：改用 stride，正確率最多少 5 個百分點。",
        ),
        lambda found: found["pooling"]["pool"][-1] - found["pooling"]["stride"][-1], 0.05,
        Said("percentage points lost", "個百分點的損失"), "share", "at most",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """The matrix of a small convolution, accuracies by kind of layer, and pooling on few and many images."""
    drawn = Figure(figsize=(8, 7), layout="constrained")
    parts = drawn.subplot_mosaic([["matrix", "matrix"], ["layers", "pooling"]], height_ratios=(2, 3))
    matrix, layers, pooling = parts["matrix"], parts["layers"], parts["pooling"]
    fields = receptive_fields(1, 6, 3, 1, 0)
    matrix.imshow(np.ma.masked_less(fields.numpy(), 0), cmap="tab10", vmin=-0.5, vmax=9.5)
    matrix.set(xlabel="pixel of a 6 x 6 image", ylabel="neuron", title="a 3 x 3 convolution as a matrix")
    matrix.yaxis.set_major_locator(MultipleLocator(5))
    weights = measurements[0]["weights"]
    for part, shift, colour, label in ((0, -0.2, "0.75", "training"), (1, 0.2, "tab:purple", "new images")):
        found = 100 * np.array([values(measurements, "layers", kind)[:, part] for kind in get_args(Kind)])
        layers.bar(np.arange(len(found)) + shift, found.mean(1), 0.38, yerr=found.std(1), capsize=3, color=colour,
                   label=label)  # fmt: skip
    names = [f"{kind.replace(' ', chr(10))}\n{weights[kind]:,}" for kind in get_args(Kind)]
    layers.set_xticks(range(len(names)), names)
    layers.set(ylim=(0, 125), ylabel="accuracy (%)", title="one layer, and its weights")
    layers.legend(fontsize=9, loc="upper center", ncols=2)
    sizes = measurements[0]["sizes"]
    for shrink, name, colour in (("pool", "pooling", "tab:green"), ("stride", "strides", "tab:orange")):
        found = 100 * values(measurements, "pooling", shrink)
        pooling.errorbar(sizes, found.mean(0), found.std(0), fmt="o-", capsize=3, color=colour, label=name)
    pooling.set(xscale="log", xlabel="images to learn from", ylabel="new images right (%)", title="a CNN")
    pooling.set_xticks(sizes, [f"{size:,}" for size in sizes])
    pooling.xaxis.set_minor_locator(NullLocator())
    pooling.legend()
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Weights and accuracies of each network."""
    first = measurements[0]
    rows: list[list[Any]] = []
    for kind in get_args(Kind):
        cells = map(mean_and_spread, values(measurements, "layers", kind).T)
        rows.append([kind, f"{first['counts'][kind]:,}", f"{first['weights'][kind]:,}", *cells])
    for i, size in enumerate(first["sizes"]):
        for shrink in SHRINKS:
            cell = mean_and_spread(values(measurements, "pooling", shrink)[:, i])
            rows.append([f"CNN, {shrink}, {size:,} images", "–", "–", "–", cell])
    return ["layer", "weights, lecture", "weights here", "training accuracy", "accuracy on new images"], rows


def walked(measurements: list[Measurements]) -> Any:
    """A held-out image and the filters that the first seed's convolution has learned, with its stride and padding."""
    return measurements[0]["walk"] | {"stride": 1, "padding": 1}


STUDY = Study(
    number=12,
    heading=Said("CNN", "卷積神經網路"),
    lecture=Said(
        "A pattern is small, so a neuron need not see the whole image: outside its <em>receptive field</em> its "
        "weights are 0. The same pattern may lie anywhere, so neurons at different places <em>share</em> their "
        "weights. Both only take freedom from a fully connected layer, and leave a convolution. Pooling then makes "
        "the map smaller; it can be left out, as AlphaGo does.",
        "圖樣很小，神經元不需要看整張圖：<em>感受野</em>（receptive field）以外的權重都是 0。"
        "同樣的圖樣可能出現在任何位置，"
        "所以不同位置的神經元<em>共用</em>權重。兩者都只是拿掉全連接層的自由度，剩下的就是卷積。"
        "接著 pooling 縮小特徵圖；"
        "它可以不用，AlphaGo 就沒有用。",
    ),
    formula="y = W x, with W<sub>i j</sub> = k<sub>n(i, j)</sub> where pixel j lies at place n of neuron i's receptive "
    "field, else 0",
    varies=Said(
        "Mask and sharing of one layer, where the largest of each filter's neurons counts; and HW3's CNN with pooling "
        "or with strides in its place. Both learn to name "
        "made images (one of 8 signs somewhere in noise); with --full the layer learns HW3's photos.",
        "一層網路的遮罩與共用（每個濾波器只取最大的神經元輸出）；以及 HW3 的 CNN 用 pooling 或改用 stride。"
        "兩者都學著辨認產生的圖片"
        "（8 種符號之一，出現在雜訊中的任何位置）；加上 --full 時，一層網路學的是 HW3 的照片。",
    ),
    caption=Said(
        "Above: a convolution as a matrix, where every colour is one weight. Left: accuracies of one layer, and how "
        "many weights it has. Right: the CNN with pooling and with strides.",
        "上：把卷積寫成矩陣，每種顏色是一個權重。左：一層網路的正確率與權重數。右：CNN 用 pooling 與用 stride。",
    ),
    doubt=Said(
        "Strides cost accuracy where images are few: the largest of four neighbours stays the same when the image "
        "moves by a pixel, and a net with strides must learn that from examples. Augmentation, or a further layer "
        "(Springenberg 2015), might close that gap.",
        "圖片少時 stride 會損失正確率：圖片移動一個像素，四個鄰居的最大值往往不變，"
        "而用 stride 的網路必須從資料學會這件事。"
        "資料增強，或多加一層（Springenberg 2015），也許能補回來。",
    ),
    again=(
        "leeml fit --config configs/hw3_food/medium.yaml --model.net.shrink stride",
        Said("HW3's CNN without pooling.", "不用 pooling 的 HW3 CNN。"),
    ),
    source="Lecture 6 of 2021; LeCun et al. 1998, Proceedings of the IEEE 86; Springenberg et al. 2015 (arXiv "
    "1412.6806); Silver et al. 2016, Nature 529",
    code=("scripts/studies/cnn.py:as_matrix", "scripts/studies/cnn.py:ImageLayer", "modules/nets/cnn.py:CNN"),
    quick=Settings(),
    full=Settings(photos=True, filters=64, signs=(256, 16384), steps=600, accelerator="auto"),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    play=Play("convolution", walked),
    data="hw3_food",
    full_looks=(4, 8),
)  # fmt: skip
