"""HW3 on the page: a photo, the likeliest classes, and where the network looked (Grad-CAM)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from datamodules.errors import DataError
from datamodules.images.decoded import pixels
from modules.hw3_food import FoodClassifier
from modules.pictures.classifiers import heatmaps
from modules.pictures.grad_cam import grad_cam
from scripts.demos.parts import Trained, example_row, guarded, inner_tabs, message, picture

TITLE, SUBTITLE = "HW3", "Food: what is on a photo, and where the network looked"
LIKELIEST = 5
SHOWN = 320  # pixels of the picture's side


class Seen(NamedTuple):
    """What a network says of a photo."""

    classes: list[tuple[str, float]]
    """The likeliest and their probabilities."""
    figure: Figure | None
    """The photo beside its Grad-CAM; None for a network without convolutions."""


def read_photo(data: bytes | None, size: int) -> Tensor:
    """A photo's bytes as uint8 (3, size, size).

    Raises:
        DataError: nothing, no image, a broken or far too large one.
    """
    if not data:
        raise DataError("Choose a photo first.")
    try:
        return torch.from_numpy(pixels(data, size).copy()).permute(2, 0, 1)
    except Image.DecompressionBombError:
        raise DataError("This photo has too many pixels; make it smaller.") from None
    except Exception:  # Pillow's plugins raise what they like
        raise DataError(
            "This file is no image that can be read, or it is broken; expected JPEG, PNG, WebP, GIF or TIFF."
        ) from None


def answer(model: FoodClassifier, image: Tensor, shown: Tensor) -> Seen:
    """The likeliest classes of an image.

    Args:
        model: The run's.
        image: As the network takes it, uint8 (3, S, S).
        shown: The same to be drawn, uint8 (3, H, W).
    """
    assert model.facts is not None
    classes, x = model.facts["classes"], image.unsqueeze(0)
    with torch.no_grad():
        shares = model.judge({"x": x}).probabilities[0]
    values, best = shares.topk(min(LIKELIEST, len(classes)))
    found = [(classes[i], value) for i, value in zip(best.tolist(), values.tolist(), strict=True)]
    stages = model.stages()
    if not stages:
        return Seen(found, None)
    heat = grad_cam(model.net, stages[-1], model.normalised(x), best[:1]).float()
    return Seen(found, heatmaps(shown.unsqueeze(0), heat, [f"where {found[0][0]} was seen"]))


def add_tab(runs: Sequence[Trained]) -> None:
    """A photo or an example, five classes, Grad-CAM."""
    for run in inner_tabs(runs):
        _add_run(run)


def _add_run(run: Trained) -> None:
    import gradio as gr

    classes = run.model.facts["classes"]
    with gr.Row():
        with gr.Column():
            photo = gr.File(type="binary", file_types=["image"], label="a photo of food", height=140)
            if run.examples:
                gallery = gr.Gallery(
                    [(e["x"][0].permute(1, 2, 0).numpy(), classes[int(e["y"][0])]) for e in run.examples],
                    label="Held-out examples: click one", columns=3, allow_preview=False, height="auto", format="png",
                    interactive=False, elem_classes="examples", buttons=[],
                )  # fmt: skip
            else:
                gallery = example_row(run, [])
        with gr.Column():
            wrong = message()
            label = gr.Label(label="the likeliest classes", num_top_classes=LIKELIEST)
            out = gr.HTML()

    def shown(image: Tensor, large: Tensor) -> list[Any]:
        found = answer(run.model, image, large)
        alt = f"the photo, and where the network saw {found.classes[0][0]}"
        return [dict(found.classes), "" if found.figure is None else picture(found.figure, alt)]

    def look(data: bytes | None) -> list[Any]:
        return shown(read_photo(data, run.data.image_size), read_photo(data, SHOWN))

    photo.upload(guarded(look, 2), photo, [wrong, label, out], api_visibility="private")
    if gallery is not None:

        def pick(event: gr.SelectData) -> list[Any]:
            image = run.examples[event.index]["x"][0]
            return guarded(shown, 2)(image, image)

        gallery.select(pick, None, [wrong, label, out], api_visibility="private")
