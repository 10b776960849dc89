"""Small and large batches: seconds, errors after equally many epochs, and how sharp the loss is where they end."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from callbacks.curvature import curvature, hessian_product
from datamodules.hw1_covid import CovidData
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, across, effect, mean_and_spread
from scripts.studies.lab.fit import errors, fit, regressor, rows


@dataclass(frozen=True)
class Settings:
    """Rows in a batch, epochs for all, hidden widths, the rate of Adam, and updates that are timed."""

    sizes: tuple[int, ...] = (32, 256, 2048)
    epochs: int = 15
    hidden: tuple[int, ...] = (64, 64)
    rate: float = 1e-3
    timed_sizes: tuple[int, ...] = (1, 32, 256, 2048)
    timed: int = 30
    edition: str | None = None


def seconds_an_update(settings: Settings, size: int, root: Path) -> float:
    """Median seconds of one optimizer step on random rows, forward and backward, without the loader."""
    data = CovidData(str(root), edition=settings.edition)
    data.setup("fit")
    module = regressor(torch.optim.Adam, settings.rate, hidden=list(settings.hidden))
    assert data.facts is not None
    module.expect(data.facts)
    module.configure_model()
    optimizer = module.configure_optimizers()
    x, y = (part[torch.randint(len(part), (size,))].unsqueeze(0) for part in rows(data, "train"))
    times = []
    for _ in range(settings.timed):
        start = time.perf_counter()
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Seconds, errors and the Hessian's largest eigenvalue on the training rows, by size of batch."""
    found: Measurements = {"sizes": list(settings.sizes), "timed_sizes": list(settings.timed_sizes)}
    found["update"] = [seconds_an_update(settings, size, root) for size in settings.timed_sizes]
    found |= {"train": [], "held_out": [], "sharpness": []}
    for size in settings.sizes:
        torch.manual_seed(seed)
        data = CovidData(str(root), edition=settings.edition, seed=seed, batch_size=size)
        module = regressor(torch.optim.Adam, settings.rate, hidden=list(settings.hidden))
        fit(module, data, settings.epochs)
        x, y = (part.unsqueeze(0) for part in rows(data, "train"))
        found["rows"] = y.shape[1]
        loss = (module(x) - y).square().mean()
        found["sharpness"].append(curvature(*hessian_product(loss, list(module.parameters())), iterations=20).highest)
        for name, value in errors(module, data)._asdict().items():
            found[name].append(value)
    return found


def log_ratios(measurements: list[Measurements], key: str, above: int, below: int) -> list[float]:
    """log2 of the ratio of two entries of a measurement, one a seed."""
    values = across(measurements, key)
    return np.log2(values[:, above] / values[:, below]).tolist()


def judge(measurements: list[Measurements]) -> list[Finding]:
    """A factor of 1.1 counts as a difference."""
    margin = float(np.log2(1.1))
    first = measurements[0]
    small, large = first["sizes"][0], first["sizes"][-1]
    timed = first["timed_sizes"]
    update = across(measurements, "update")
    rows_each = np.array(timed)
    epoch = np.log2(update / rows_each)
    root = round(timed[-2] ** 0.5)
    held_out = np.array(log_ratios(measurements, "held_out", -1, 0))
    return [
        effect(f"an update on {timed[-2]} rows takes less than {root} times as long as one on {timed[0]} (log2 ratio)",
               (np.log2(root) - np.log2(update[:, -2] / update[:, 0])).tolist()),
        effect(f"an epoch of updates takes longer with {timed[0]} row each than with {timed[-1]} (log2 ratio)",
               (epoch[:, 0] - epoch[:, -1]).tolist(), 1.0),
        effect(f"after equally many epochs {small} rows a batch leave less held-out error than {large} (log2 ratio)",
               held_out.tolist(), margin),
        effect("and less of it as a multiple of the training error (log2 ratio)",
               (held_out - log_ratios(measurements, "train", -1, 0)).tolist(), margin),
        effect(f"{large} rows a batch end where the loss is sharper (log2 ratio of the top eigenvalue)",
               log_ratios(measurements, "sharpness", -1, 0), margin),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """Time, errors and sharpness by size of batch."""
    drawn = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    first = measurements[0]
    timed = np.array(first["timed_sizes"])
    update = across(measurements, "update")
    left.loglog(timed, 1000 * update.mean(0), "o-", label="an update (ms)")
    left.loglog(timed, update.mean(0) * first["rows"] / timed, "s-", label="an epoch (s)")
    left.set(title="time")
    left.legend(fontsize=8)
    for name, style in (("train", "o-"), ("held_out", "s--")):
        values = across(measurements, name)
        middle.errorbar(first["sizes"], values.mean(0), values.std(0), fmt=style, capsize=3,
                        label=name.replace("_", " "))  # fmt: skip
    middle.set(xscale="log", yscale="log", title="error after equal epochs")
    middle.legend(fontsize=8)
    right.loglog(first["sizes"], across(measurements, "sharpness").T, color="tab:blue", alpha=0.3)
    right.loglog(first["sizes"], np.exp(np.log(across(measurements, "sharpness")).mean(0)), "o-", color="tab:blue")
    right.set(title="sharpness: largest eigenvalue")
    for axes, sizes in ((left, timed), (middle, first["sizes"]), (right, first["sizes"])):
        axes.set_xlabel("rows in a batch")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Errors, sharpness and time by size of batch."""
    first = measurements[0]
    rows = []
    for size in sorted({*first["sizes"], *first["timed_sizes"]}):
        cells = [
            mean_and_spread(across(measurements, key)[:, first["sizes"].index(size)]) if size in first["sizes"] else "–"
            for key in ("train", "held_out", "sharpness")
        ]
        time_of = (
            mean_and_spread(1000 * across(measurements, "update")[:, first["timed_sizes"].index(size)])
            if size in first["timed_sizes"]
            else "–"
        )
        rows.append([size, *cells, time_of])
    return ["rows a batch", "training error", "held-out error", "top eigenvalue", "ms an update"], rows


STUDY = Study(
    number=7,
    heading="Small Batch and Large Batch",
    chinese="小批次與大批次",
    claim="A large batch costs little more time an update and less an epoch; after equally many epochs small batches "
    "generalise better, and large ones end in sharper minima.",
    source="Lecture 3 of 2021; Keskar et al. 2017, ICLR (arXiv 1609.04836)",
    idea="Rows of a batch are worked on side by side, so an update takes much the same time up to some size, and a "
    "large batch has fewer updates in an epoch. Small ones make noisy steps, of which the paper says that they do not "
    "settle in sharp valleys, where training and test loss differ most. In as many epochs a large batch makes fewer "
    "steps, so the held-out error is also judged as a multiple of the training error.",
    formula="g = (1/B) Σ<sub>i ∈ batch</sub> ∇L<sub>i</sub>; sharpness: the largest λ of H u = λ u",
    varies="rows in a batch; the same epochs, network and rate (HW1)",
    code=("callbacks/curvature.py:lanczos", "datamodules/samplers.py:MemberBatchSampler"),
    quick=Settings(),
    full=Settings(epochs=100, edition="2021"),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw1_covid",
    seeds=4,
)
