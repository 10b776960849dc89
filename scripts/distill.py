"""leeml distill: a run's own translations of the sentences it was trained on, as pairs to train another model on.

Sequence-level knowledge distillation (Kim and Rush 2016, arXiv 1606.07947): what a teacher's beam says is more regular
than what people wrote, and easier to learn, above all for models that produce all tokens at once. Only real pairs of
the training part are translated, the teacher's own data configuration tells which; nothing held out is among them.
"""

from pathlib import Path

from datamodules.hw5_translation import SIDES, TranslationData
from scripts.cli.mistakes import Parser, UsageError
from scripts.run.checkpoint import from_config
from scripts.translate import add_options, opened, parse, planned
from scripts.translation.chunks import write_all
from scripts.translation.reading import Line
from scripts.translation.writing import pair_row, whole_file

REAL = ("--data.synthetic=null", "--data.synthetic_ratio=null", "--data.synthetic_only=false")


def main(args: list[str]) -> int:
    """Write the table: columns en and zh, a row for each training pair in the order of their files."""
    parser = Parser(
        prog="leeml distill", description=__doc__,
        epilog="--data.root DIR and other --data flags say where the run's training files are, if not where they were.",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="table to write, named .tsv; for --data.synthetic")
    add_options(parser)
    own, flags = parse(parser, args)
    if ".tsv" not in own.output.suffixes:
        raise UsageError(f"--output {own.output}: expected a name that ends in .tsv")
    models = planned(own, flags)
    sink = whole_file(own, models, "\t".join(SIDES) if own.shard is None or own.shard.number == 1 else None)
    path, flags = models[0]
    of_model = [flag for flag in flags if flag.startswith("--model.")]
    translator = opened(own, [(path, of_model) for path, _ in models])
    of_data = [flag for flag in flags if flag not in of_model]
    data: TranslationData = from_config(path, [*REAL, *of_data], "data", trust=own.trust).data
    data.expect(translator.model.facts)
    data.setup("validate")
    rows = data.chosen_folds()[0].train
    pairs = data.raw_lines(rows)
    side = SIDES.index(data.source)
    lines = [Line(pairs[row][side], f"pair {row + 1}") for row in rows.tolist()]
    write_all(lines, len(lines), own.shard, translator, sink, lambda line, said: pair_row(data.source, line.text, said))
    return 0
