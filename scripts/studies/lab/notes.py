"""The headings of the lecture notes in their order, and docs/notes.md, which is made of them and of docs/studies/.

`make notes` writes it anew: no figure in it is typed by hand.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from callbacks.files import write_text
from scripts.studies.lab.machine import load, names
from scripts.studies.lab.records import SIZES, Record, read
from scripts.studies.lab.statements import summary


@dataclass(frozen=True)
class Heading:
    """A heading of the notes and what the project has for it.

    Args:
        notes: As the notes write it.
        code: Where its idea stands, as files of the project.
        studies: Those that show it, if any.
        command: To see it where no study does, or beside one.
        picture: Of the documentation, as a link, or what a run draws.
    """

    notes: str
    code: tuple[str, ...]
    studies: tuple[str, ...] = ()
    command: str = ""
    picture: str = ""


def homework(number: int, name: str, level: str, picture: str) -> Heading:
    """The heading "Hw" and its number, with the homework's module, data and the command of a level."""
    place = f"hw{number}_{name}"
    command = f"leeml fit --config configs/{place}/{level}.yaml"
    return Heading(f"Hw{number}", (f"modules/{place}.py", f"datamodules/{place}.py"), (), command, picture)


OF_A_RUN = "`figures/` of a run"
SPEAKERS = "leeml fit --config configs/hw4_speaker/{}.yaml"
RATES = ("scripts/studies/adaptive_rates.py",), ("adaptive_rates",)
HEADINGS = (
    Heading(
        "Introduction", ("modules/base.py", "modules/hw1_covid.py"), (),
        "leeml fit --config configs/hw1_covid/simple.yaml", f"{OF_A_RUN}: loss by step",
    ),
    Heading("Neuron and Neuron Network", ("modules/nets/mlp.py",), ("sigmoids",)),
    homework(1, "covid", "medium", "[predicted against true](images/hw1_predicted_against_true.png)"),
    Heading("General Guide", ("callbacks/general_guide.py",), ("general_guide",)),
    Heading("Optimization Issue", ("callbacks/general_guide.py",), ("general_guide",)),
    Heading(
        "Local minima and Saddle point", ("callbacks/critical_points.py", "callbacks/curvature.py"),
        ("critical_points", "loss_surface"),
    ),
    Heading("Overfitting", ("modules/hw1_covid.py",), ("overfitting",)),
    Heading("Cross Validation", ("datamodules/hw1_covid.py", "scripts/kfold.py"), ("cross_validation",)),
    Heading(
        "N-fold Cross Validation", ("scripts/kfold.py", "scripts/run/folds.py"), ("cross_validation",),
        "leeml kfold --config configs/hw1_covid/medium.yaml",
    ),
    Heading("Batch and Momentum", ("datamodules/samplers.py",), ("batch_size", "momentum")),
    Heading("Small Batch and Large Batch", ("datamodules/samplers.py", "callbacks/curvature.py"), ("batch_size",)),
    Heading("Momentum", ("scripts/studies/momentum.py",), ("momentum",)),
    Heading("Adaptive Learning Rate", *RATES),
    Heading("Adagrad", *RATES),
    Heading("RMSProp", *RATES),
    Heading("Adam=Adagrad+RMSProp", *RATES),
    Heading("Warm Up", ("callbacks/warmup.py", "callbacks/schedules.py"), ("warmup",)),
    Heading("Batch Normalization", ("modules/nets/mlp.py", "modules/nets/window_mlp.py"), ("batch_norm",)),
    homework(2, "phoneme", "medium", "[confusions](images/hw2_confusion.png)"),
    Heading(
        "CNN", ("modules/nets/cnn.py",), ("cnn",),
        "leeml fit --config configs/hw3_food/medium.yaml --model.net.shrink stride",
    ),
    homework(3, "food", "strong", "[features](images/hw3_features.png)"),
    Heading(
        "ResNet18", ("modules/nets/resnet.py",), (), "leeml fit --config configs/hw3_food/strong.yaml",
        "[training curves](images/hw3_curves.png)",
    ),
    Heading("Self-attention", ("modules/nets/attention.py",), (), SPEAKERS.format("simple"), OF_A_RUN),
    Heading("Muti-head", ("modules/nets/attention.py",), ("attention_as_cnn",)),
    Heading("Muti-Head Self-Attention是CNN Pro Max", ("scripts/studies/attention_as_cnn.py",), ("attention_as_cnn",)),
    Heading("Positional Encoding", ("modules/nets/positions.py",), ("positions",)),
    homework(4, "speaker", "medium", OF_A_RUN),
    Heading(
        "Transformer", ("modules/nets/transformer.py", "modules/nets/seq2seq.py"), (),
        "leeml fit --config configs/hw5_translation/tiny.yaml", OF_A_RUN,
    ),
    Heading(
        "Encoder", ("modules/nets/transformer.py", "modules/nets/frame_encoders.py"), (), SPEAKERS.format("medium"),
        "[where each head attends](images/hw4_attention.png)",
    ),
    Heading(
        "Decoder", ("modules/nets/transformer.py", "modules/translation/search.py"), (),
        "leeml translate --run_dir RUN FILE", OF_A_RUN,
    ),
    Heading("Comparison", ("modules/nets/transformer.py",), ("masked_attention", "cross_attention")),
    Heading(
        "Masked Self-attention", ("modules/nets/attention.py", "modules/nets/transformer.py"), ("masked_attention",)
    ),
    Heading(
        "Autoregressive和Non-autoregressive", ("modules/hw5_parallel.py", "modules/translation/parallel_search.py"),
        ("autoregressive",), "leeml fit --config configs/hw5_translation/nat_masked.yaml",
        "[mask-predict](images/hw5_mask_predict.png)",
    ),
    Heading(
        "Encoder-Decoder", ("modules/nets/seq2seq.py", "modules/nets/recurrent_seq2seq.py"), (),
        "leeml fit --config configs/hw5_translation/strong.yaml", "[cross-attention](images/hw5_attention.png)",
    ),
    Heading("Cross Attention", ("modules/nets/routing.py",), ("cross_attention",)),
    Heading(
        "Training",
        (
            "callbacks/scheduled_sampling.py", "modules/translation/scheduled_sampling.py", "modules/objectives.py",
            "modules/translation/rewards.py",
        ),
        ("scheduled_sampling", "reinforcement"),
        "leeml fit --config configs/hw5_translation/self_critical.yaml --model.start RUN",
    ),
    homework(5, "translation", "tiny", "[BLEU, loss and gradient norm](images/hw5_curves.png)"),
)  # fmt: skip

INTRODUCTION = """\
# From the notes to the code

Every heading of the lecture notes in their order: the file of its idea, the command that shows it, and the picture it
makes. `leeml study list` names the studies; `leeml study NAME` runs one on generated data and adds it to a page to read
and to play with, `runs/studies/index.html`, which needs neither server nor network. `--full` uses real data
(`--data.root`) and larger settings. `make notes` writes this file from the results in `docs/studies/`.

| notes | code | command | picture |
|---|---|---|---|
"""
FOUND = """
## What the studies found

A study states several things, each of which can turn out false. The margin of a statement is the least effect that
matters, and is fixed beforehand. It holds where the whole interval of the effect lies beyond the margin, is too small
to matter where the interval lies within it, and does not hold where the effect is clearly the other way round, or, for
an upper bound, above it. Seeds from 1000 on judge; those that an experiment was designed with do not. All looks at
growing numbers of seeds together have an error of 5 % (repeated confidence intervals, Jennison and Turnbull 1989).
"""
SHOWN = {"quick": "generated data, `--quick`", "full": "`--full`"}


def plain(text: str) -> str:
    """A text of a record as Markdown that means the same."""
    return re.sub(r"([*_|<`\[\]])", r"\\\1", text)


def row(heading: Heading, records: dict[tuple[str, str], Record]) -> str:
    """A heading's row of the table."""
    code = ", ".join(f"`{path}`" for path in heading.code)
    commands = [*(f"leeml study {name}" for name in heading.studies), *([heading.command] if heading.command else [])]
    pictures = [heading.picture] if heading.picture else []
    for name in heading.studies:
        pictures += [f"[{name}](studies/{size}/{name}.png)" for size in SIZES[::-1] if (name, size) in records][:1]
    command = ", ".join(f"`{command}`" for command in commands)
    return f"| {heading.notes} | {code} | {command} | {', '.join(pictures)} |\n"


def results(records: dict[tuple[str, str], Record], size: str) -> str:
    """How the statements of all studies of a size came out."""
    return summary([v.result for (_, own), record in records.items() if own == size for v in record.verdicts])


def notes(folder: Path) -> str:
    """The text of docs/notes.md.

    Args:
        folder: Of results, such as docs/studies; a study without any is named as not run.
    """
    records = read(folder)
    studies = sorted(names(), key=lambda name: load(name).number)
    text = INTRODUCTION + "".join(row(heading, records) for heading in HEADINGS) + FOUND
    for size in SIZES:
        count = sum(own == size for _, own in records)
        if count:
            text += f"\nOf all statements of {count} studies with {SHOWN[size]}: {results(records, size)}.\n"
    for name in studies:
        study = load(name)
        text += f"\n### {study.number}. {study.heading.english}\n\n"
        found = [records[name, size] for size in SIZES if (name, size) in records]
        if not found:
            text += f"`leeml study {name}`: no result is recorded.\n"
        for record in found:
            text += (
                f"`leeml study {name}`, {SHOWN[record.size]}: {summary([v.result for v in record.verdicts])} "
                f"({record.seeds} seeds, {record.seconds:,.0f} seconds of a core, {record.day}, torch {record.torch})."
                "\n\n"
            )
            text += "".join(
                f"- **{v.result}**: {plain(v.says.english)} {plain(v.words.english)}.\n" for v in record.verdicts
            )
            text += "" if record is found[-1] else "\n"
    return text


def main() -> None:
    """Write docs/notes.md from the headings of the notes and the records of docs/studies/."""
    from datamodules.files.places import PROJECT

    write_text(PROJECT / "docs" / "notes.md", notes(PROJECT / "docs" / "studies"))


if __name__ == "__main__":
    main()
