"""leeml translate: lines of text in, as many lines out, in their order, by a run of HW5 or several together.

Lines are read, sorted by length and written in chunks of 256, so that memory stays bounded however many there are. What
becomes of a chunk does not depend on where a run began: an interrupted file that is gone on with (--resume), or shards
put together (--shard), are to the byte what one run would have written.
"""

import argparse
import itertools
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from modules.translation.detokenize import RESTORE
from scripts.cli.mistakes import Parser, UsageError
from scripts.train import plan
from scripts.translation.chunks import Shard, parse_shard, write_all
from scripts.translation.reading import read
from scripts.translation.translator import LineTranslator, Way
from scripts.translation.writing import Sink, StandardOutput, whole_file

# flags


def add_options(parser: Parser) -> None:
    """Flags of translate and distill."""
    parser.add_argument(
        "--run_dir", type=Path, action="append", default=[],
        help="folder of a trained run; several are an ensemble, whose probabilities are averaged",
    )  # fmt: skip
    parser.add_argument(
        "--ckpt_path", action="append", default=[], help="best (default) or last of the run, or a file; may be repeated"
    )
    parser.add_argument("--beam", type=int, help="hypotheses kept (default: the run's); 1 is greedy, and fastest")
    parser.add_argument(
        "--way", choices=get_args(Way), default="beam",
        help="the likeliest translation, one drawn from the probabilities, or the likeliest with words dropped, masked "
        "and moved: the latter two are for back-translation (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--length_penalty", type=float, help="(default: the run's)")
    parser.add_argument(
        "--max_tokens", type=int, default=4096, help="of a batch: sentences x the longest (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--precision", choices=("auto", "32-true", "bf16-mixed", "16-mixed"), default="auto",
        help="of the networks (default: mixed as the GPU has it, float32 on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", type=parse_shard, metavar="I/N",
        help="only part I of N; under torchrun each process has its own and writes FILE.I. `cat` joins them in order",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="resume FILE.part, which an interrupted run left")
    parser.add_argument("--trust", action="store_true", help="allow the run to use classes that leeml does not know")


def parse(parser: Parser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The subcommand's flags, and --model.KEY VALUE and --data.KEY VALUE, which change a run's configuration."""
    subcommand, *typed = args
    own: list[str] = []
    config: list[str] = []
    words = iter(typed)
    for word in words:
        if not word.startswith(("--model.", "--data.")):
            own.append(word)
        else:
            config.append(word if "=" in word else f"{word}={next(words, '')}")
    found = parser.parse_args(own, argparse.Namespace(subcommand=subcommand))
    for name in ("beam", "length_penalty"):
        if (value := getattr(found, name)) is not None:
            config.append(f"--model.{name}={value}")
    if not found.run_dir and not found.ckpt_path:
        raise UsageError(f"{parser.prog} needs a trained run: --run_dir runs/..., or --ckpt_path FILE")
    if found.max_tokens < 1:
        raise UsageError(f"--max_tokens {found.max_tokens}: expected at least 1")
    if found.shard is None and (world := int(os.environ.get("WORLD_SIZE", 1))) > 1:  # started by torchrun
        found.shard = Shard(int(os.environ["RANK"]) + 1, world)
        if found.output is None:
            raise UsageError("several processes cannot share standard output; add --output FILE")
        found.output = found.output.with_name(f"{found.output.name}.{found.shard.number:0{len(str(world))}}")
    return found, config


# models


def planned(own: argparse.Namespace, flags: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """For each model its checkpoint, as `leeml predict` chooses it, and the flags that change its configuration."""
    found = []
    for run, name in itertools.product(own.run_dir or [None], own.ckpt_path or [None]):
        where = [*(["--run_dir", str(run)] if run else []), *(["--ckpt_path", name] if name else [])]
        where += ["--trust"] if own.trust else []
        chosen = plan(["predict", *where, *flags])
        assert chosen.ckpt_path is not None
        configs = [part for config in chosen.configs[1:] for part in ("--config", config)]  # the first is the run's own
        found.append((Path(chosen.ckpt_path), [*configs, *chosen.flags]))
    return found


def opened(own: argparse.Namespace, models: Sequence[tuple[Path, Sequence[str]]]) -> LineTranslator:
    """The models, as the subcommand's flags want them to translate."""
    return LineTranslator(models, own.device, own.max_tokens, own.precision, own.trust, own.way, own.seed)


def main(args: list[str]) -> int:
    """Translate files or standard input."""
    parser = Parser(
        prog="leeml translate", description=__doc__,
        epilog="--model.KEY VALUE changes the model's configuration, as in leeml predict.",
    )  # fmt: skip
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="UTF-8 text, plain or .gz (default: standard input)"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    parser.add_argument(
        "--cleaned", action="store_true", help="text as the model says it, punctuation between spaces, as BLEU compares"
    )
    add_options(parser)
    own, flags = parse(parser, args)
    if own.resume and own.output is None:
        raise UsageError("--resume needs --output, the file to resume")
    if not own.files and sys.stdin.isatty():
        raise UsageError(f"nothing to translate: {parser.prog} ... FILE, or {parser.prog} ... < FILE")
    models = planned(own, flags)
    sink: Sink = StandardOutput() if own.output is None else whole_file(own, models, cleaned=own.cleaned)
    countable = own.files and all(stat.S_ISREG(path.stat().st_mode) for path in own.files)
    total = sum(1 for _ in read(own.files)) if countable else None  # and all is known to be UTF-8
    translator = opened(own, models)
    restore = (lambda text: text) if own.cleaned else RESTORE[translator.target]
    write_all(read(own.files), total, own.shard, translator, sink, lambda line, text: restore(text))
    return 0
