"""What the tabs of `leeml demo` share: opened runs, held-out examples, messages, and small pieces of HTML."""

import base64
import io
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from datamodules.base import HomeworkData
from datamodules.errors import DataError
from datamodules.speech.audio import RATE, read_audio
from modules.base import HomeworkModule
from scripts.run.checkpoint import from_config, load_model
from scripts.train import plan

EXAMPLES = 6  # of each run
SHORTEST, LONGEST = 0.3, 60.0  # seconds of a recording
QUIET = 1e-3  # of full scale, -60 dB: no sample of a recording with a voice in it stays below
SORRY = "Something went wrong with this input. The terminal that runs leeml demo shows what; the page goes on."
_one_at_a_time = threading.Lock()  # Grad-CAM and attention hang hooks on the network


class Trained(NamedTuple):
    """A run on the page."""

    name: str
    model: Any
    """The HomeworkModule, in eval mode."""
    data: Any
    """Its HomeworkData; files were read only where there are examples."""
    examples: list[dict[str, Any]]
    """Batches of one held-out sample each, as the validation has them; none where the data is not here."""
    note: str
    """Why there are no examples, for the terminal; else empty."""


def open_run(run: Path, flags: Sequence[str], trust: bool) -> Trained:
    """Open a run by its best checkpoint, and its held-out samples where its data can be found.

    Args:
        run: Its folder.
        flags: `--data.KEY VALUE`, which change the configuration of its data.
        trust: Whether classes that leeml does not know may be built.

    Raises:
        DataError: no run, or one that may not or cannot be opened.
    """
    chosen = plan(["predict", "--run_dir", str(run), *(["--trust"] if trust else []), *flags])
    assert chosen.ckpt_path is not None
    path = Path(chosen.ckpt_path)
    model = load_model(path, trust=trust)
    if not isinstance(model, HomeworkModule):
        raise DataError(f"{run}: is no run of HW1 to HW5, for which there are pages; use leeml predict")
    data = from_config(path, chosen.flags, "data", trust=trust).data
    try:
        data.expect(model.facts)
        data.setup("validate")
        found, note = held_out(data, EXAMPLES), ""
    except (DataError, OSError) as error:
        found, note = [], f"no examples, as its data was not found: {error}"
    return Trained(run.name, model, data, found, note)


def held_out(data: HomeworkData, count: int) -> list[dict[str, Any]]:
    """Batches of one sample each, evenly drawn from what the run holds out."""
    loader = data.val_dataloader()
    rows = torch.cat([torch.as_tensor(batch) for batch in loader.sampler]).sort().values
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [loader.dataset[rows[place : place + 1]] for place in places.tolist()]


# answers to events


def guarded(answer: Callable[..., Sequence[Any]], count: int) -> Callable[..., list[Any]]:
    """An event's handler: what is wrong in a sentence, then the `count` values of `answer`, None where it failed."""

    def handle(*given: Any) -> list[Any]:
        try:
            with _one_at_a_time:
                return ["", *answer(*given)]
        except DataError as error:
            return [str(error), *[None] * count]
        except Exception:
            traceback.print_exc()
            return [SORRY, *[None] * count]

    return handle


def inner_tabs(runs: Sequence[Trained]) -> Iterator[Trained]:
    """Each run inside a tab of its own where there are several."""
    import gradio as gr

    for run in runs:
        with gr.Tab(run.name) if len(runs) > 1 else _nothing():
            yield run


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def message() -> Any:
    """Where a tab says what is wrong."""
    import gradio as gr

    return gr.Markdown(elem_classes="message", sanitize_html=True)


def example_row(run: Trained, labels: Sequence[str]) -> Any:
    """Held-out samples to click on, a gr.Dataset that hands over a number; None where there are none."""
    import gradio as gr

    if not labels:
        gr.Markdown("No examples: the data of this run was not found (the terminal says where).", elem_classes="note")
        return None
    shown = [[label if len(label) <= 90 else f"{label[:89]}…"] for label in labels]
    return gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=shown, type="index", label="Held-out examples: click one"
    )


# sound


def read_recording(path: str | None) -> np.ndarray:
    """Samples (N,) at 16 kHz of what was uploaded or recorded.

    Raises:
        DataError: nothing, no sound, too short or too long, or silence.
    """
    if not path:
        raise DataError("Upload a recording first, or press the microphone and then stop.")
    try:
        samples = read_audio(Path(path), warn=False)
    except DataError as error:
        said = str(error).replace(f"{path}: ", "").replace(path, "the file")
        raise DataError(f"This recording was not read: {said}") from None
    seconds = len(samples) / RATE
    if seconds < SHORTEST:
        raise DataError(f"This recording lasts {seconds:.2f} s, which is too short; expected {SHORTEST} s or more.")
    if seconds > LONGEST:
        raise DataError(f"This recording lasts {seconds:.0f} s; expected at most {LONGEST:.0f} s, cut it.")
    if np.abs(samples).max() < QUIET:
        raise DataError("This recording is silent. Is the microphone on, and is it the right one?")
    return samples


# pieces of HTML


def picture(figure: Figure, alt: str, wide: bool = False) -> str:
    """A figure as HTML; a wide one keeps its size and is scrolled."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110 if wide else 160)
    data = base64.b64encode(file.getvalue()).decode()
    kind = "wide" if wide else "whole"
    return f'<div class="scrolled"><img class="{kind}" alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float] = ()) -> str:
    """A table as HTML, with a bar behind each row where shares (0 to 1) are given."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = []
    for number, row in enumerate(rows):
        share = 100 * min(1.0, max(0.0, shares[number])) if shares else 0.0
        bar = f' style="--share: {share:.1f}%"'
        body.append(f"<tr{bar}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="scrolled"><table class="leeml"><tr>{head}</tr>{"".join(body)}</table></div>'
