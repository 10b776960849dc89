"""HW1 on the page: a state and its days as sliders, and the share of positive tests that is expected."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules.errors import DataError
from datamodules.tables.covid import CovidTable
from datamodules.tables.features import Kind, feature_matrix
from modules.hw1_covid import CovidRegressor
from scripts.demos.parts import Trained, example_row, guarded, inner_tabs, message

TITLE, SUBTITLE = "HW1", "COVID-19: the share of positive tests of a state, from surveys of the days before"


class Layout(NamedTuple):
    """What the columns of a run's table are."""

    states: list[str]
    survey: list[str]
    """Of a day, tested_positive last."""
    days: int


class Estimate(NamedTuple):
    """In percent of the tests."""

    mean: float
    lowest: float
    """Of the run's networks."""
    highest: float


def layout_of(columns: Sequence[str]) -> Layout:
    """States, survey questions and days, by the names: cli of the first day is cli.1 on the second."""
    first = next(i for i, name in enumerate(columns) if f"{name}.1" in columns)
    width = columns.index(f"{columns[first]}.1") - first
    days = sum(name.split(".")[0] == columns[first] for name in columns)
    return Layout(list(columns[:first]), list(columns[first : first + width]), days)


@torch.inference_mode()
def answer(model: CovidRegressor, kind: Kind, values: Sequence[float | None]) -> Estimate:
    """What the run expects of the last day.

    Args:
        model: The run's.
        kind: See CovidData.features.
        values: One a column of the table, C: state marks, then the days.

    Raises:
        DataError: a value is missing or no number.
    """
    assert model.facts is not None
    columns = model.facts["columns"]
    for name, value in zip(columns, values, strict=True):
        if value is None or not np.isfinite(value):
            raise DataError(f"{name}: expected a number, found {'nothing' if value is None else value}.")
    layout = layout_of(columns)
    row = np.array([values], np.float64)
    table = CovidTable(Path("page"), layout.states, layout.survey, layout.days, [0], row, None)
    x = torch.from_numpy(feature_matrix(table, kind)[0]).float()
    each = model(x.expand(len(model.facts["fold"]), 1, -1))[:, 0]
    return Estimate(float(each.mean()), float(each.min()), float(each.max()))


def drawn(estimate: Estimate, earlier: Sequence[float]) -> str:
    """The estimate in words, and a line of it after the days before, as HTML."""
    values = [*earlier, estimate.mean]
    top = max(1.0, *values) * 1.15
    places = [(30 + 240 * i / (len(values) - 1), 100 - 85 * value / top) for i, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{"new" if i == len(earlier) else "old"}"/>'
        f'<text x="{x:.1f}" y="{y - 9:.1f}">{value:.1f}</text><text x="{x:.1f}" y="118">day {i + 1}</text>'
        for i, ((x, y), value) in enumerate(zip(places, values, strict=True))
    )
    spread = f" (single networks: {estimate.lowest:.1f} to {estimate.highest:.1f} %)" if _several(estimate) else ""
    return (
        f'<div class="big">{estimate.mean:.2f} %</div><p>of the tests on day {len(values)} are expected to be positive'
        f'{escape(spread)}.</p><svg class="days" viewBox="0 0 300 125" role="img" aria-label="share of positive '
        f'tests by day, in percent"><polyline points="{line}"/>{marks}</svg><p class="note">Share of positive tests '
        "in percent, by day; the last point is the estimate.</p>"
    )


def _several(estimate: Estimate) -> bool:
    return estimate.highest - estimate.lowest > 1e-6


def starting_values(run: Trained, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest, highest and first value of each column of the days, (C,) each, with two digits after the point."""
    columns = run.model.facts["columns"][len(layout.states) :]
    if run.examples:
        table = run.data.train.values[:, len(layout.states) :]
        lowest = np.floor(100 * table.min(0)) / 100
        return lowest, np.maximum(np.ceil(100 * table.max(0)) / 100, lowest + 0.01), np.median(table, axis=0).round(2)
    facts = run.model.facts
    means = {facts["features"][i]: float(m) for i, m in zip(facts["used"][0].tolist(), facts["mean"][0], strict=True)}
    by_question: dict[str, float] = {}
    for name, mean in means.items():
        if "-" not in name:  # a difference of two days
            by_question[name.split(".")[0]] = mean
    first = np.array([means.get(name, by_question.get(name.split(".")[0], 0.0)) for name in columns])
    first = first.round(2)
    return np.zeros(len(columns)), np.maximum(100.0, first), first


def add_tab(runs: Sequence[Trained]) -> None:
    """Sliders of the days, newest first, and the estimate, which follows them."""
    for run in inner_tabs(runs):
        _add_run(run)


def _add_run(run: Trained) -> None:
    import gradio as gr

    layout = layout_of(run.model.facts["columns"])
    count, width = len(layout.states), len(layout.survey)
    lowest, highest, first = starting_values(run, layout)
    states = list(layout.states) or ["none"]

    def estimate(state: str, *values: float) -> list[str]:
        marks = [float(name == state) for name in layout.states]
        found = answer(run.model, run.data.features, [*marks, *values])
        return [drawn(found, [values[(day + 1) * width - 1] for day in range(layout.days - 1)])]

    rows = [run.data.train.values[int(example["row"][0])] for example in run.examples]
    named = [states[int(row[:count].argmax()) if row[:count].any() else 0] for row in rows]
    labels = [
        f"{name}, row {int(example['row'][0])}; truth {float(example['y'][0]):.2f} %"
        for name, example in zip(named, run.examples, strict=True)
    ]
    by_day: list[list[Any]] = [[] for _ in range(layout.days)]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            wrong = message()
            out = gr.HTML(estimate(states[0], *first.tolist())[0])
            examples = example_row(run, labels)
        with gr.Column(scale=3, min_width=300):
            state = gr.Dropdown(states, value=states[0], label="state", interactive=True)
            for day in reversed(range(layout.days)):
                title = f"day {day + 1}" + (" (to be estimated)" if day == layout.days - 1 else "")
                with gr.Accordion(title, open=day == layout.days - 2), gr.Row():
                    for i, name in enumerate(layout.survey[: width - (day == layout.days - 1)], day * width):
                        slider = gr.Slider(lowest[i], highest[i], first[i], label=name, min_width=210, step=0.01)
                        by_day[day].append(slider)
    sliders = [slider for day in by_day for slider in day]
    gr.on(
        [state.input, *(slider.input for slider in sliders)], guarded(estimate, 1), [state, *sliders], [wrong, out],
        trigger_mode="always_last", show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    if examples is not None:

        def show(number: int) -> list[Any]:
            values = rows[number][count:].round(2).tolist()
            return [*estimate(named[number], *values), named[number], *values]

        given = [wrong, out, state, *sliders]
        examples.click(guarded(show, 2 + len(sliders)), examples, given, api_visibility="private")
