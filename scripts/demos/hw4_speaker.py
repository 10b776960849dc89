"""HW4 on the page: a recording, the likeliest speakers, and how alike its voice is to each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.speech.audio import log_mel
from datamodules.speech.crops import Crops
from modules.hw4_speaker import SpeakerClassifier
from scripts.demos.parts import Trained, example_row, guarded, inner_tabs, message, read_recording, table

TITLE, SUBTITLE = "HW4", "Speakers: whose voice is it?"
LIKELIEST = 5
PER_SPEAKER, FRAMES = 3, 400  # training utterances that stand for a speaker, and frames of each


class Heard(NamedTuple):
    """A speaker, with how likely and how similar the recording is."""

    name: str
    probability: float
    similarity: float | None
    """Cosine with the mean embedding of the speaker's training utterances, -1 to 1."""


@torch.inference_mode()
def answer(model: SpeakerClassifier, frames: Tensor, voices: Tensor | None = None) -> list[Heard]:
    """All speakers, the likeliest first.

    Args:
        model: The run's.
        frames: Log-mel (T, 40).
        voices: Embedding of each speaker (C, E), see `speakers_voices`.
    """
    assert model.facts is not None
    judged = model.judge({"x": frames.float().unsqueeze(0)})
    assert judged.embeddings is not None
    shares = judged.probabilities[0]
    alike = None if voices is None else (voices @ F.normalize(judged.embeddings[0], dim=0)).tolist()
    order = shares.argsort(descending=True).tolist()
    names = model.facts["classes"]
    return [Heard(names[i], float(shares[i]), None if alike is None else alike[i]) for i in order]


@torch.no_grad()
def speakers_voices(run: Trained) -> Tensor | None:
    """The mean embedding (C, E), of length 1, of some training utterances of each speaker; None without data."""
    if not run.examples:
        return None
    data, train = run.data, run.data.chosen_folds()[0].train
    labels = data.targets.numpy()[train]
    chosen = np.concatenate([train[labels == speaker][:PER_SPEAKER] for speaker in range(len(data.speakers))])
    crops = Crops(data.frames, data.targets, FRAMES, None, data.seed)
    found = torch.zeros(len(data.speakers), 0)
    for rows in torch.from_numpy(chosen).split(64):
        embeddings = run.model.judge(crops[rows]).embeddings
        found = found if found.shape[1] else torch.zeros(len(found), embeddings.shape[1])
        found.index_add_(0, data.targets[rows], embeddings)
    return F.normalize(found)


def add_tab(runs: Sequence[Trained]) -> None:
    """A recording or an example, the likeliest speakers, and all of them by likeness."""
    for run in inner_tabs(runs):
        _add_run(run)


def _add_run(run: Trained) -> None:
    import gradio as gr

    voices = speakers_voices(run)
    names = run.model.facts["classes"]
    with gr.Row():
        with gr.Column():
            sound = gr.Audio(type="filepath", sources=["upload", "microphone"], label="somebody speaking")
            button = gr.Button("Who is it?", variant="primary")
            labels = [f"{names[int(e['y'][0])]}, {e['x'].shape[1] / 100:.1f} s" for e in run.examples]
            examples = example_row(run, labels)
        with gr.Column():
            wrong = message()
            label = gr.Label(label="the likeliest speakers", num_top_classes=LIKELIEST)
            out = gr.HTML()

    def shown(found: list[Heard]) -> list[Any]:
        best = {heard.name: heard.probability for heard in found[:LIKELIEST]}
        if voices is None:
            return [best, '<p class="note">Similarity to each speaker needs the training data.</p>']
        alike = sorted(found, key=lambda heard: -(heard.similarity or 0.0))
        rows = [(heard.name, f"{heard.similarity:.3f}", f"{heard.probability:.1%}") for heard in alike]
        return [
            best,
            table(("speaker", "similarity", "probability"), rows, [heard.similarity or 0.0 for heard in alike]),
        ]

    def listen(path: str | None) -> list[Any]:
        return shown(answer(run.model, torch.from_numpy(log_mel(read_recording(path))), voices))

    gr.on(
        [button.click, sound.stop_recording], guarded(listen, 2), sound, [wrong, label, out], api_visibility="private"
    )
    if examples is not None:
        show = guarded(lambda number: shown(answer(run.model, run.examples[number]["x"][0], voices)), 2)
        examples.click(show, examples, [wrong, label, out], api_visibility="private")
