"""HW2 on the page: a recording, and its phones above the spectrogram."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.speech.audio import mfcc, normalise
from datamodules.speech.packed import windows
from modules.hw2_phoneme import PhonemeClassifier, spectrum
from modules.pictures.classifiers import labelled_frames
from scripts.demos.parts import Trained, example_row, guarded, inner_tabs, message, picture, read_recording

TITLE, SUBTITLE = "HW2", "Phones: what sounds an English sentence is made of"


class Phones(NamedTuple):
    """The phones that were heard, with their times."""

    names: list[str]
    """One a run of equal frames."""
    labels: Tensor
    """Class of every frame, (T,)."""
    figure: Figure


@torch.inference_mode()
def answer(model: PhonemeClassifier, frames: Tensor, true: Tensor | None = None) -> Phones:
    """The phones of an utterance.

    Args:
        model: The run's.
        frames: Normalised features (T, 39).
        true: Classes (T,), where they are known.
    """
    assert model.facts is not None
    count, window = len(frames), model.facts["window"]
    batch: dict[str, Any] = {"lengths": [count]}
    if window is None:
        batch |= {"x": frames.unsqueeze(0), "mask": torch.ones(1, count, dtype=torch.bool)}
        batch["places"] = torch.arange(count)
    else:
        batch["x"] = windows(frames, torch.tensor([0, count]), torch.arange(count), window)
    labels = model.labels(batch)
    classes = model.facts["classes"]
    tracks = {"heard": labels} | ({} if true is None else {"true": true})
    figure = labelled_frames(spectrum(frames.float()), tracks, classes, above=True)
    return Phones([classes[i] for i in labels.unique_consecutive().tolist()], labels, figure)


def add_tab(runs: Sequence[Trained]) -> None:
    """A recording or an example, its phones, and where they are."""
    for run in inner_tabs(runs):
        _add_run(run)


def _add_run(run: Trained) -> None:
    import gradio as gr

    sound = gr.Audio(type="filepath", sources=["upload", "microphone"], label="an English sentence")
    button = gr.Button("Find the phones", variant="primary")
    samples = [_utterance(example) for example in run.examples]
    examples = example_row(run, [f"utterance of {len(x) / 100:.1f} s" for x, _ in samples])
    wrong, out = message(), gr.HTML()

    def shown(found: Phones) -> list[str]:
        words = " ".join(found.names)
        return [f'<p class="phones">{words}</p>' + picture(found.figure, f"phones over time: {words}", wide=True)]

    def listen(path: str | None) -> list[str]:
        return shown(answer(run.model, torch.from_numpy(normalise(mfcc(read_recording(path))))))

    gr.on([button.click, sound.stop_recording], guarded(listen, 1), sound, [wrong, out], api_visibility="private")
    if examples is not None:
        show = guarded(lambda number: shown(answer(run.model, *samples[number])), 1)
        examples.click(show, examples, [wrong, out], api_visibility="private")


def _utterance(example: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Frames (T, 39) and classes (T,) of a batch of one utterance, whole or as windows."""
    if "mask" in example:
        return example["x"][0].float(), example["y"][0]
    return example["x"][:, example["x"].shape[1] // 2].float(), example["y"]
