"""Pictures of a classifier's work, shared by the homeworks: tensors in, a matplotlib figure out."""

import math
from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn.functional import interpolate, pad

from modules.pictures.style import _panels, colour_bar, printable, with_fonts

MOST_NUMBERED = 15
"""Classes up to which the cells of a confusion matrix hold numbers."""
MOST_NAMED = 100
"""Classes up to which axes name them all."""
MOST_COLOURS = 20
"""Classes up to which a legend tells their colours."""


@with_fonts
def confusion_matrix(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Confusion matrix, coloured by the share of each row, with counts in the cells while there is room for them.

    Args:
        matrix: Counts (C, C), rows true, columns predicted.
        classes: Their C names; more than MOST_NAMED are numbered.
    """
    counts = matrix.cpu().double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    size = min(max(3.0, len(classes) * (0.5 if len(classes) <= MOST_NUMBERED else 0.17)), 14.0)
    figure = Figure(figsize=(size + 2, size + 1), layout="compressed")
    axes = figure.subplots()
    # the root of the share: confusions of a few per cent must be seen
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(image, label="share of the true class", shrink=0.8, aspect=30)
    if len(classes) <= MOST_NAMED:
        names = [printable(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(classes) <= MOST_NUMBERED:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.4 else "black"
            number = f"{counts[row, column]:.0f}"
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=7)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{counts.sum():.0f} samples, accuracy {_accuracy(counts):.3f}", fontsize=9)
    return figure


def _accuracy(counts: Tensor) -> float:
    return float(counts.trace() / counts.sum().clamp(min=1))


@with_fonts
def class_accuracy(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Share of each class that is found, the worst class on top, beside its number of samples.

    Classes without samples are left out; of more than MOST_NAMED, only the worst are drawn.

    Args:
        matrix: Counts (C, C), rows true, columns predicted.
        classes: Their C names.
    """
    counts = matrix.cpu().double()
    samples = counts.sum(1)
    found = counts.diagonal() / samples.clamp(min=1)
    filled = [i for i in found.argsort(stable=True).tolist() if samples[i]]
    order = filled[:MOST_NAMED]
    figure = Figure(figsize=(6, 1.2 + 0.18 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), found[order].numpy(), color="tab:blue")
    axes.set_yticks(range(len(order)), [f"{printable(classes[i])} ({samples[i]:.0f})" for i in order], fontsize=8)
    total = _accuracy(counts)
    axes.axvline(total, color="tab:red", linewidth=1)
    axes.set(xlabel=f"accuracy; line: {total:.3f} of all samples", xlim=(0, 1), ylim=(max(1, len(order)) - 0.5, -0.5))
    if len(order) < len(filled):
        axes.set_title(f"the worst {len(order)} of {len(filled)} classes", fontsize=9)
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join("\n".join(wrap(line, width)) for line in text.split("\n"))


@with_fonts
def sheet(images: Tensor, titles: Sequence[str], columns: int = 6) -> Figure:
    """A sheet of pictures, each under its title.

    Args:
        images: (K, 3, H, W) in colour or (K, 1, H, W) in grey, uint8 or floats from 0 to 1; K may be 0.
        titles: One an image; long lines are broken.
        columns: Pictures side by side.

    Raises:
        ValueError: as many titles as images are needed.
    """
    height, width = images.shape[2:]
    inches = 1.6 * max(1.0, width / height)
    wrapped = [_wrapped(printable(title), round(18 * inches)) for title in titles]
    lines = max((title.count("\n") + 1 for title in wrapped), default=0)
    figure, panels = _panels(len(images), columns, inches, inches * height / width + 0.1 + 0.14 * lines)
    pictures = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    for (picture, title), axes in zip(zip(pictures, wrapped, strict=True), panels, strict=False):
        axes.imshow(picture)
        axes.set_title(title, fontsize=7)
    return figure


def filters(weight: Tensor) -> Figure:
    """The filters of a first layer as small pictures, each stretched from its lowest weight (0) to its highest (1).

    Args:
        weight: (O, 3, k, k), or (O, 1, k, k) for grey.
    """
    weight = weight.detach().cpu().float()
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    tiles = (weight - low) / (high - low).clamp(min=torch.finfo(weight.dtype).tiny)
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tiles = pad(tiles.expand(-1, 3, -1, -1), (1, 1, 1, 1), value=1.0)  # a white frame
    tiles = torch.cat((tiles, tiles.new_ones(rows * columns - len(tiles), *tiles.shape[1:])))
    grid = tiles.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    figure, (axes,) = _panels(1, 1, 5, 5 * grid.shape[0] / grid.shape[1] + 0.3)
    axes.imshow(grid.numpy(), interpolation="nearest")
    axes.set_title(f"{len(weight)} filters of {weight.shape[3]} x {weight.shape[2]}", fontsize=9)
    return figure


def heatmaps(images: Tensor, maps: Tensor, titles: Sequence[str]) -> Figure:
    """Every image beside itself with a map laid over it: the hotter, the less of the image is left.

    Args:
        images: (K, 3, H, W) uint8
        maps: (K, h, w), 0 or more; each is scaled by its own maximum, one of zeros stays invisible.
        titles: One an image.

    Raises:
        ValueError: as many titles as images are needed.
    """
    if not len(images):
        return sheet(images, titles)
    images = images.cpu()
    maps = interpolate(maps.detach().cpu().float().unsqueeze(1), images.shape[2:], mode="bilinear")
    heat = maps / maps.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    colours = torch.from_numpy(colormaps["jet"](heat[:, 0].numpy())[..., :3]).permute(0, 3, 1, 2)
    opacity = 0.6 * heat
    over = (1 - opacity) * images + opacity * 255 * colours
    figure = sheet(torch.cat((images, over.round().to(torch.uint8)), dim=3), titles, columns=3)
    scale = ScalarMappable(Normalize(0, 1), "jet")
    figure.colorbar(scale, ax=figure.axes, label="share of the image's largest value", shrink=0.6, aspect=30)
    return figure


def flatten(features: Tensor) -> np.ndarray:
    """Places (N, 2) of features (N, D) in a plane: t-SNE of their first 50 principal components.

    Fewer than 5 rows get principal components only; equal rows all lie in one point.
    """
    x = features.detach().cpu().double().numpy()
    if (x == x[:1]).all():
        return np.zeros((len(x), 2))
    x = PCA(min(50, *x.shape), random_state=0).fit_transform(x)
    if x.shape[1] < 2:
        x = np.pad(x, ((0, 0), (0, 1)))
    if len(x) < 5:
        return x[:, :2]
    return TSNE(init="pca", perplexity=min(30.0, (len(x) - 1) / 3), random_state=0).fit_transform(x)


def _colours(classes: int) -> Colormap:
    """One colour a class."""
    if classes <= MOST_COLOURS:
        name = "tab10" if classes <= 10 else "tab20"
        return ListedColormap(colormaps[name].colors[:classes])  # type: ignore[attr-defined]
    return colormaps["turbo"].resampled(classes)


@with_fonts
def embedding(layers: dict[str, Tensor], labels: Tensor, classes: Sequence[str]) -> Figure:
    """How a network's layers set the classes apart: the features of each, laid out in a plane.

    t-SNE takes about 10 seconds a layer for 1500 samples on one core.

    Args:
        layers: Name -> features (N, D), at least one; D may differ.
        labels: Numbers of the classes, (N,).
        classes: Their names; more than MOST_COLOURS get colours without a legend.
    """
    colours = _colours(len(classes))
    figure, panels = _panels(len(layers), 4, max(3.5, 6 / len(layers)), 3.7)
    for axes, (name, features) in zip(panels, layers.items(), strict=False):
        x, y = flatten(features).T
        axes.set_axis_on()
        points = axes.scatter(x, y, c=labels.cpu().numpy(), cmap=colours, vmin=-0.5, vmax=len(classes) - 0.5, s=6)
        axes.set(xticks=[], yticks=[])
        axes.set_title(printable(name), fontsize=9)
    if len(classes) <= MOST_COLOURS:
        figure.set_figwidth(figure.get_figwidth() + 1.6)
        marks = [Line2D([], [], linestyle="", marker="o", color=colours(i)) for i in range(len(classes))]
        figure.legend(marks, [printable(name) for name in classes], loc="outside right upper", fontsize=8)
    else:
        figure.colorbar(points, ax=panels, label="number of the class", shrink=0.8, aspect=30)
    return figure


@with_fonts
def labelled_frames(
    x: Tensor, tracks: dict[str, Tensor], classes: Sequence[str], seconds: float = 0.01, above: bool = False
) -> Figure:
    """Features over time, and below or above them rows of labels, such as true and predicted phones.

    Args:
        x: (T, D), drawn with the first feature at the bottom.
        tracks: Name -> labels (T,); a run of one label is one box, with its name where there is room for it.
        classes: Their names.
        seconds: Of a frame.
        above: Whether the labels stand above the features.
    """
    length = len(x) * seconds
    inches = max(6.0, min(5 * length, 20.0))
    figure = Figure(figsize=(inches, 2.5 + 0.5 * len(tracks)), layout="constrained")
    heights = [5.0, *(1.0 for _ in tracks)]
    panels = list(
        figure.subplots(len(heights), 1, sharex=True, height_ratios=heights[:: -1 if above else 1], squeeze=False).flat
    )
    frames, rows = (panels[-1], panels[:-1]) if above else (panels[0], panels[1:])
    image = frames.imshow(
        x.cpu().float().T.numpy(), origin="lower", aspect="auto", extent=(0, length, 0, x.shape[1]), cmap="magma"
    )
    colour_bar(frames, image, "log energy\n(0: the mean)")
    frames.set_ylabel("mel band")
    colours = _colours(len(classes))
    for axes, (track, labels) in zip(rows, tracks.items(), strict=True):
        runs, counts = labels.cpu().unique_consecutive(return_counts=True)
        start = 0
        for label, count in zip(runs.tolist(), counts.tolist(), strict=True):
            axes.axvspan(start * seconds, (start + count) * seconds, color=colours(label), alpha=0.45, linewidth=0)
            axes.axvline(start * seconds, color="white", linewidth=0.8)
            name, room = printable(classes[label]), 0.85 * inches * count / len(x)  # names and a bar stand beside
            if room >= 0.09:  # a line of letters of 7 points is as high, and a letter 0.065 wide at most
                turned = 0 if room >= 0.065 * len(name) else 90
                place = ((start + count / 2) * seconds, 0.5)
                axes.text(*place, name, ha="center", va="center", fontsize=7, rotation=turned, clip_on=True)
            start += count
        axes.set_yticks([])
        axes.set_ylabel(track, rotation=0, ha="right", va="center")
    panels[-1].set_xlabel("time (s)")
    return figure


@with_fonts
def attention_maps(x: Tensor, layers: dict[str, Tensor], seconds: float = 0.01) -> Figure:
    """Where each head of each layer looks, under the frames it looks at.

    Args:
        x: Frames (T, D), log mel energies, drawn with the first band at the bottom.
        layers: Name -> weights (heads, T', T') of those frames, or of every n-th; rows the frame that looks, columns
            the frame that is looked at.
        seconds: Of a frame.
    """
    heads, length = max(len(maps) for maps in layers.values()), len(x) * seconds
    figure = Figure(figsize=(1 + 2.9 * max(heads, 2), 1.4 + 2.4 * len(layers)), layout="constrained")
    grid = figure.add_gridspec(1 + len(layers), heads, height_ratios=[0.8, *(2.4 for _ in layers)])
    for column in range(heads):
        axes = figure.add_subplot(grid[0, column])
        bands = x.cpu().float().T.numpy()
        image = axes.imshow(bands, origin="lower", aspect="auto", extent=(0, length, 0, len(bands)), cmap="magma")
        axes.set_xticks([])
        axes.tick_params(labelsize=7)
        axes.set_title(f"head {column + 1}", fontsize=9)
        if column == 0:
            axes.set_ylabel("mel band", fontsize=8)
        colour_bar(axes, image, "log energy" if column == heads - 1 else "")
    for row, (name, maps) in enumerate(layers.items(), 1):
        for column, weights in enumerate(maps):
            axes = figure.add_subplot(grid[row, column])
            # by the root: a head that looks everywhere a little would be black beside one that looks at one place
            image = axes.imshow(
                weights.numpy(),
                aspect="auto",
                extent=(0, length, length, 0),
                cmap="viridis",
                norm=PowerNorm(0.5, vmin=0),
            )
            axes.tick_params(labelsize=7)
            colour_bar(axes, image, "weight" if column == len(maps) - 1 else "")
            if column == 0:
                axes.set_ylabel(f"{printable(name)}\ntime that looks (s)", fontsize=8)
            if row == len(layers):
                axes.set_xlabel("time looked at (s)", fontsize=8)
    return figure
