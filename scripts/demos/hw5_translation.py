"""HW5 on the page: a sentence, its translations, what each token looked at, and how the words come about.

Several runs stand side by side: one that says token after token beside mask-predict, which says all at once and then
again those it was least sure of.
"""

import itertools
import time
import traceback
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.errors import DataError
from datamodules.text.cleaning import CLEAN
from modules.hw5_parallel import MaskedTranslator, ParallelTranslator
from modules.hw5_translation import Translator
from modules.pictures.translators import cross_attention_maps
from modules.translation.detokenize import RESTORE
from modules.translation.parallel_search import mask_predict
from modules.translation.search import Hypothesis, beam_search
from scripts.demos.parts import SORRY, Trained, example_row, guarded, message, picture, table

TITLE, SUBTITLE = "HW5", "Translation: a sentence, and how its translation comes about"
MOST = 1000  # characters
N_BEST = 5
PAUSE = 0.15  # seconds that a step stays before the next one, else nobody could follow


class Answer(NamedTuple):
    """Translations of a sentence."""

    texts: list[tuple[str, float | None]]
    """As people write them, the best first, with scores: log-probability by token; None where the run has none."""
    source: list[str]
    """Its pieces, S."""
    target: list[str]
    """Pieces of the best, T."""
    attention: dict[str, Tensor]
    """Layer -> (heads, T, S): what each piece of the target looked at; empty where the run says no pieces in order."""


class Step(NamedTuple):
    """Where a translation stands."""

    pieces: list[str]
    new: list[bool]
    """Which of them this step has said."""


def source_of(model: Translator, text: str | None) -> Tensor:
    """Tokens (S,) of a sentence, EOS among them.

    Raises:
        DataError: nothing to translate, or too much of it.
    """
    assert model.facts is not None
    if not text or not text.strip():
        raise DataError("Write a sentence first.")
    if len(text) > MOST:
        raise DataError(
            f"This text has {len(text):,} characters; expected one sentence of at most {MOST:,}. For whole files there "
            "is leeml translate."
        )
    text = text.encode(errors="replace").decode()  # a browser may send half of a character
    cleaned = CLEAN[model.facts["source"]](text)
    if not cleaned:
        raise DataError("Nothing is left of this sentence when it is cleaned as the training data: (brackets) go.")
    tokens = model.pieces.encode(cleaned)
    if len(tokens) >= model.facts["max_length"]:
        raise DataError(
            f"This sentence has {len(tokens)} tokens; the run was trained for at most {model.facts['max_length'] - 1}. "
            "Make it shorter."
        )
    return torch.tensor([*tokens, model.ends.eos])


def answer(model: Translator, text: str | None, count: int = N_BEST) -> Answer:
    """The best translations of a sentence, and what the best one looked at.

    Args:
        model: The run's.
        text: A sentence as somebody writes it.
        count: Translations wanted; fewer where the search keeps fewer.

    Raises:
        DataError: nothing to translate, or too much of it.
    """
    source = source_of(model, text)
    one, ends = source.unsqueeze(0), model.ends
    found: list[Hypothesis] = []
    if isinstance(model, MaskedTranslator):
        candidates = min(max(count, model.candidates), 2 * model.predictor.reach + 1)
        found = mask_predict(
            model.net, model.unknown, model.predictor, one, None, ends, model.iterations, candidates
        )[0]  # fmt: skip
        target = found[0].tokens
    elif not isinstance(model, ParallelTranslator):
        found = beam_search(
            [model.net], one, None, ends, max(count, model.beam), count, model.length_penalty,
            no_repeat=model.no_repeat,
        )[0]  # fmt: skip
        target = [*found[0].tokens, ends.eos]
    restore = RESTORE[model.language]
    if not found:
        with torch.inference_mode():
            return Answer([(restore(model.translate(one)[0]), None)], pieces_of(model, source.tolist()), [], {})
    best = list(dict.fromkeys((restore(model.text(h.tokens)), h.score) for h in found))[:count]
    attention = model.attention(source, torch.tensor(target)) if target else {}
    return Answer([*best], pieces_of(model, source.tolist()), pieces_of(model, target), attention)


def pieces_of(model: Translator, tokens: Sequence[int]) -> list[str]:
    """Tokens as they are shown, with _ for the beginning of a word."""
    return [model.pieces.id_to_piece(token).replace("▁", "_") for token in tokens]


def steps(model: Translator, text: str | None) -> Iterator[Step]:
    """The words of a translation as they come: token after token, or by iterations of mask-predict, or all at once.

    Raises:
        DataError: nothing to translate, or too much of it.
    """
    source = source_of(model, text)
    if isinstance(model, MaskedTranslator):
        for draft in model.drafts(source):
            yield Step(pieces_of(model, draft.words[0].tolist()), draft.asked[0].tolist())
    elif isinstance(model, ParallelTranslator):
        with torch.inference_mode():
            said = model.pieces.encode_as_pieces(model.translate(source.unsqueeze(0))[0])
        yield Step([p.replace("▁", "_") for p in said], [True] * len(said))
    else:
        yield from _token_by_token(model, source)


def _token_by_token(model: Translator, source: Tensor) -> Iterator[Step]:
    """The likeliest token at each step, as `greedy`, but seen from step to step."""
    net, ends, one = model.net, model.ends, source.unsqueeze(0)
    said: list[int] = []
    word = ends.bos
    with torch.inference_mode():
        state = net.start(net.encode(one, None))
    for _ in range(ends.limits([net], one, None)[0] - 1):
        with torch.inference_mode():
            logits = net.logits(net.step(net.embed(torch.tensor([[word]])), state)[:, -1])[0]
            logits[[ends.pad, ends.bos]] = -torch.inf
            word = int(logits.argmax())
        if word == ends.eos:
            return
        said.append(word)
        yield Step(pieces_of(model, said), [False] * (len(said) - 1) + [True])


# pieces of the page


def drawn_steps(names: Sequence[str], kinds: Sequence[str], seen: Sequence[tuple[int, Step | None, bool]]) -> str:
    """One column a run: its pieces so far, those of the last step marked, and how far it is, as HTML."""
    columns = []
    for name, kind, (number, step, done) in zip(names, kinds, seen, strict=True):
        pieces = [] if step is None else list(zip(step.pieces, step.new, strict=True))
        chips = "".join(f'<span class="{"new" if new and not done else "old"}">{escape(p)}</span>' for p, new in pieces)
        spent = "" if step is None else f"{number} step{'s' if number > 1 else ''}"
        state = f"done: {spent}" if done else spent or "..."
        columns.append(
            f'<div class="race"><b>{escape(name)}</b> <i>{escape(kind)}</i><div class="chips">{chips}</div>'
            f"<small>{state}</small></div>"
        )
    return f'<div class="races">{"".join(columns)}</div>'


def kind_of(model: Translator) -> str:
    """How it says its words."""
    if not isinstance(model, ParallelTranslator):
        return "token by token"
    if isinstance(model, MaskedTranslator) and model.iterations > 1:
        return f"all at once, {model.iterations} iterations of mask-predict"
    return "all at once"


def attention_table(found: Answer) -> str:
    """Mean over the heads of the last layer: rows are pieces of the translation, columns those of the source."""
    if not found.attention:
        return '<p class="note">This run has no attention to show.</p>'
    weights = list(found.attention.values())[-1].mean(0)
    head = "".join(f"<th><span>{escape(piece)}</span></th>" for piece in found.source)
    rows = []
    for piece, row in zip(found.target, weights.tolist(), strict=True):
        cells = "".join(f'<td style="--w: {w**0.5:.3f}" title="{w:.2f}"></td>' for w in row)
        rows.append(f"<tr><th>{escape(piece)}</th>{cells}</tr>")
    return (
        f'<div class="scrolled"><table class="attention"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
        '<p class="note">Each row is a token of the translation; the darker a cell, the more it looked at that token '
        "of the source (last layer, mean over the heads).</p>"
    )


def all_heads(found: Answer) -> Figure | None:
    """Every layer and head by itself."""
    return cross_attention_maps(found.attention, found.source, found.target) if found.attention else None


def add_tab(runs: Sequence[Trained]) -> None:
    """A sentence, its translations by one of the runs, and all runs as they say it."""
    import gradio as gr

    model = runs[0].model
    source, target = ({"en": "English", "zh": "Chinese"}[model.facts[side]] for side in ("source", "target"))
    names, kinds = [run.name for run in runs], [kind_of(run.model) for run in runs]
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(label=f"a sentence, {source} to {target}", lines=2, max_lines=6, autofocus=True)
            chosen = gr.Radio(names, value=names[0], type="index", label="run", visible=len(runs) > 1)
            button = gr.Button("Translate", variant="primary")
            first = next((run for run in runs if run.examples), runs[0])
            examples = example_row(first, [example["text"][0] for example in first.examples])
        with gr.Column():
            wrong, best = message(), gr.HTML()
    with gr.Accordion("How the words come about", open=True):
        race = gr.HTML()
    with gr.Accordion("What each token looked at", open=True):
        looked = gr.HTML()
    with gr.Accordion("Every layer and head", open=False):
        heads = gr.HTML()

    def translated(text: str | None, number: int | None) -> list[str]:
        found = answer(runs[number or 0].model, text)
        rows = [(line, "" if score is None else f"{score:.3f}") for line, score in found.texts]
        figure = all_heads(found)
        return [
            f'<div class="big">{escape(found.texts[0][0])}</div>' + table(("n-best", "log-probability by token"), rows),
            attention_table(found),
            "" if figure is None else picture(figure, "attention of every layer and head", wide=True),
        ]

    def translate(text: str | None, number: int | None) -> Iterator[list[Any]]:
        said, *shown = guarded(translated, 3)(text, number)
        yield [said, *shown, None]
        if said:
            return
        try:
            for seen in _raced([run.model for run in runs], text):
                yield [gr.skip(), gr.skip(), gr.skip(), gr.skip(), drawn_steps(names, kinds, seen)]
                time.sleep(PAUSE)
        except DataError as error:  # another run may know shorter sentences only
            yield [str(error), gr.skip(), gr.skip(), gr.skip(), None]
        except Exception:
            traceback.print_exc()
            yield [SORRY, gr.skip(), gr.skip(), gr.skip(), None]

    out = [wrong, best, looked, heads, race]
    gr.on(
        [button.click, text.submit], translate, [text, chosen], out, api_visibility="private", show_progress="minimal"
    )
    chosen.input(translate, [text, chosen], out, api_visibility="private", show_progress="minimal")
    if examples is not None:
        examples.click(lambda number: first.examples[number]["text"][0], examples, text, api_visibility="private").then(
            translate, [text, chosen], out, api_visibility="private", show_progress="minimal"
        )


def _raced(models: Sequence[Translator], text: str | None) -> Iterator[list[tuple[int, Step | None, bool]]]:
    """After each step, for each run: steps so far, where it stands, and whether it is done."""
    going = [steps(model, text) for model in models]
    seen: list[tuple[int, Step | None, bool]] = [(0, None, False)] * len(models)
    for number in itertools.count(1):
        for i, run in enumerate(going):
            if not seen[i][2]:
                step = next(run, None)
                seen[i] = (number, step, False) if step is not None else (seen[i][0], seen[i][1], True)
        yield list(seen)
        if all(done for *_, done in seen):
            return
