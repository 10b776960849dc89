"""leeml translate: lines of text in, as many lines out, in their order, by a run of HW5 or several together.

Lines are read, sorted by length and written in chunks of 256, so that memory stays bounded however many there are. What
becomes of a chunk does not depend on where a run began: an interrupted file that is gone on with (--resume), or shards
put together (--shard), are to the byte what one run would have written.
"""

import argparse
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import re
import signal
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
import yaml
from jsonargparse import ActionConfigFile, Namespace
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from callbacks.files import write_text
from datamodules.base import Facts, HomeworkData
from datamodules.errors import DataError
from datamodules.samplers import length_buckets
from datamodules.text import CLEAN, is_simplified
from datamodules.tokenizer import EOS, PAD, Tokenizer
from modules.base import HomeworkModule
from modules.detokenize import RESTORE
from modules.hw5_translation import Translator
from scripts.mistakes import Parser, UsageError
from scripts.run_folder import load_checkpoint
from scripts.train import Parser as ConfigParser
from scripts.train import plan

CHUNK = 256  # lines
CLOSED = 128 + 13  # what a shell reports of a tool that SIGPIPE ended: not all was read, and pipefail may know


# flags


class Shard(NamedTuple):
    """One of `parts` that follow each other; `number` is 1 for the first."""

    number: int
    parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def lines(self, total: int) -> range:
        """Which lines of so many it has: whole chunks."""
        chunks = -(-total // CHUNK)
        first, last = ((n * chunks // self.parts) * CHUNK for n in (self.number - 1, self.number))
        return range(min(first, total), min(last, total))


def _shard(text: str) -> Shard:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"found {text}, expected I/N such as 1/4, the first of four parts")
    return Shard(int(found[1]), int(found[2]))


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
    parser.add_argument("--length_penalty", type=float, help="(default: the run's)")
    parser.add_argument(
        "--max_tokens", type=int, default=4096, help="of a batch: sentences x the longest (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N",
        help="only part I of N; under torchrun each process has its own and writes FILE.I. `cat` joins them in order",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with FILE.part, which an interrupted run left")


def parse(parser: Parser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's flags, and --model.KEY VALUE and --data.KEY VALUE, which change a run's configuration."""
    verb, *typed = args
    own: list[str] = []
    config: list[str] = []
    words = iter(typed)
    for word in words:
        if not word.startswith(("--model.", "--data.")):
            own.append(word)
        else:
            config.append(word if "=" in word else f"{word}={next(words, '')}")
    found = parser.parse_args(own, argparse.Namespace(verb=verb))
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
        _, _, _, *rest, _, checkpoint = plan(["predict", *where, *flags])[0]  # predict --config C ... --ckpt_path FILE
        found.append((Path(checkpoint), rest))
    return found


def from_config(checkpoint: dict[str, Any], flags: Sequence[str], *sections: str) -> Namespace:
    """The objects that sections of a checkpoint's configuration describe: model, data."""
    parser = ConfigParser(prog="leeml")
    parser.add_argument("--config", action=ActionConfigFile)
    for name, base in {"model": HomeworkModule, "data": HomeworkData}.items():
        if name in sections:
            parser.add_lightning_class_args(base, name, subclass_mode=True)
    config = {name: checkpoint["config"][name] for name in sections}
    text = yaml.safe_dump(config, default_flow_style=True, width=math.inf).strip()
    return parser.instantiate_classes(parser.parse_args(["--config", text, *flags]))


def load_model(path: Path, flags: Sequence[str] = ()) -> Any:
    """A trained module, from its checkpoint alone.

    Raises:
        DataError: it is no checkpoint, of a homework that does not translate, or not of this version.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint["homework"] != Translator.homework:
        raise DataError(f"{path}: of {checkpoint['homework']}, which translates nothing; name a run of HW5")
    model = from_config(checkpoint, flags, "model").model
    try:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).split(", ")[0]  # of many parameters
        raise DataError(f"{path}: does not fit its configuration, or what --model flags made of it: {first}") from error
    return model.eval()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: this machine has none that torch can use; leave it out")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


class Line(NamedTuple):
    """A line of text and where it stands, for messages."""

    text: str
    place: str


class LineTranslator:
    """One trained model, or an ensemble, from lines to lines.

    Args:
        models: Checkpoints and flags, see `planned`.
        device: auto, cpu or cuda.
        max_tokens: Of a batch: sentences x the longest source.

    Raises:
        DataError: a checkpoint is none of ours, or the models cannot work together.
    """

    def __init__(self, models: Sequence[tuple[Path, Sequence[str]]], device: str, max_tokens: int) -> None:
        self.device, self.max_tokens = _device(device), max_tokens
        loaded = [load_model(path, flags).to(self.device) for path, flags in models]
        paths = [path for path, _ in models]
        self.model, facts = loaded[0], loaded[0].facts
        for path, other in zip(paths[1:], loaded[1:], strict=True):
            _match(paths[0], facts, path, other.facts)
            if {type(m).translate for m in (self.model, other)} != {Translator.translate}:
                raise DataError(f"{path}: only models that say word after word make an ensemble; name one run")
            self.model.others.append(other.net)
        self.source, self.target = facts["source"], facts["target"]
        self.tokenizer = Tokenizer.from_tensor(facts["tokenizer"])
        self.longest = min(model.facts["max_length"] for model in loaded)
        self._seen_simplified = False

    @torch.inference_mode()
    def __call__(self, lines: Sequence[Line]) -> list[str]:
        """A line of cleaned text for each; empty where the cleaned line is empty. Too long ones are cut, and said."""
        texts = [CLEAN[self.source](line.text) for line in lines]
        if self.source == "zh" and not self._seen_simplified and is_simplified(texts):
            self._seen_simplified = True
            warn(f"{lines[0].place} and on: Simplified Chinese; the course's is Traditional, convert it (OpenCC, s2tw)")
        sources = self.tokenizer.encode(texts)
        for line, source in zip(lines, sources, strict=True):
            if len(source) >= self.longest:
                warn(
                    f"{line.place}: {len(source) + 1} tokens, cut to the {self.longest} that the model was trained for"
                )
                del source[self.longest - 1 :]
        said = [""] * len(lines)
        rows = np.array([row for row, source in enumerate(sources) if source], np.int64)
        lengths = np.array([len(sources[row]) + 1 for row in rows], np.int64)
        for batch in length_buckets(lengths, self.max_tokens) if len(rows) else []:
            chosen = rows[batch].tolist()
            padded = pad_sequence([torch.tensor([*sources[row], EOS]) for row in chosen], True, PAD)
            for row, text in zip(chosen, self.model.translate(padded.to(self.device)), strict=True):
                said[row] = text
        return said


def _match(path: Path, facts: Facts, other_path: Path, other: Facts) -> None:
    """Hold two models of an ensemble against each other."""
    ways = [f"from {f['source']} to {f['target']}" for f in (facts, other)]
    if ways[0] != ways[1]:
        raise DataError(f"{other_path} translates {ways[1]}, {path} {ways[0]}: an ensemble needs runs of one direction")
    if not torch.equal(facts["tokenizer"], other["tokenizer"]):
        raise DataError(
            f"{other_path}: a tokenizer of another run than that of {path}; an ensemble needs runs on the same pairs, "
            "with the same data.fold, data.seed and data.vocabulary"
        )


def warn(text: str) -> None:
    """A line on standard error, above the bar."""
    tqdm.write(f"leeml: warning: {text}", file=sys.stderr)


# lines in


def read(paths: Sequence[Path]) -> Iterator[Line]:
    """Lines of UTF-8 files one after the other, plain or .gz; of standard input where there are none.

    Raises:
        DataError: no UTF-8, or a gz that is cut short.
    """
    if not paths:
        yield from _decoded(sys.stdin.buffer, "standard input")
    for path in paths:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from _decoded(file, str(path))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: cut short or no gz file ({error}); copy or download it again") from None


def _decoded(file: Iterable[bytes], name: str) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]  # of the line without a byte order mark
            raise DataError(f"{place}: byte {byte:#04x} is no UTF-8; save the text as UTF-8") from None
        yield Line(text.removesuffix("\n").removesuffix("\r"), place)


# lines out


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C waits until what is inside is done; a second one does not."""
    caught: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)


class Sink(Protocol):
    """Where lines go, chunk after chunk."""

    def wants(self, chunk: Sequence[Line]) -> bool:
        """Whether this next chunk of the input is not there yet."""

    def write(self, lines: Sequence[str]) -> None:
        """What became of the chunk."""

    def finish(self) -> None:
        """That was all."""


class StandardOutput:
    """Lines appear chunk by chunk, each one whole."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")

    def wants(self, chunk: Sequence[Line]) -> bool:
        """Always."""
        return True

    def write(self, lines: Sequence[str]) -> None:
        """Write them now."""
        with unbroken():
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()

    def finish(self) -> None:
        """Nothing is held back."""


class WholeFile:
    """A file of lines that has its name when it is whole. Until then they are in <name>.part.

    Beside it <name>.part.json holds what they were made with and of which input: another run goes on with the same.

    Args:
        path: Of the file.
        made_with: What it depends on; plain JSON.
        resume: Go on with what an interrupted run left, if anything.
        header: A line before all others.

    Raises:
        DataError: it is there already, or what was left was made with something else.
    """

    def __init__(self, path: Path, made_with: dict[str, Any], resume: bool, header: str | None = None) -> None:
        self.path, self.header = path, header
        self.part, self.record = (path.with_name(f"{path.name}{end}") for end in (".part", ".part.json"))
        if path.suffix == ".gz":
            raise UsageError(f"--output {path}: written as plain text; leave out .gz, and compress it afterwards")
        if path.exists():
            raise DataError(f"{path}: there already; move it away, or choose another --output")
        self._state: dict[str, Any] = {"made_with": made_with, "lines": 0, "input": "", "bytes": 0}
        if self.part.exists():
            if not resume:
                raise DataError(f"{self.part}: an interrupted run left it; add --resume to go on with it, or delete it")
            self._state = self._left(made_with)
        self._seen = 0  # lines of the input
        self._input = hashlib.blake2b(digest_size=16)
        self._file: BinaryIO | None = None

    def _left(self, made_with: dict[str, Any]) -> dict[str, Any]:
        try:
            state = json.loads(self.record.read_text(encoding="utf-8"))
            whole = state["made_with"].keys() == made_with.keys() and state["bytes"] <= self.part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise DataError(f"{self.part}: {self.record.name} does not fit it; delete {self.part.name} and start anew")
        for name, value in made_with.items():
            if (before := state["made_with"][name]) != value:
                raise DataError(
                    f"{self.part}: made with {name} = {before}, now it is {value}; say the same again, or delete it to "
                    "start anew"
                )
        return state

    def wants(self, chunk: Sequence[Line]) -> bool:
        """Whether it is not in the part that is there; the input up to that must be the same."""
        known, before = self._state["lines"], self._seen
        self._seen += len(chunk)
        self._input.update("".join(f"{line.text}\n" for line in chunk).encode())
        if before < known and (self._seen > known or not self._agrees()):
            raise self._other_input()
        return before >= known

    def _agrees(self) -> bool:
        return self._seen < self._state["lines"] or self._input.hexdigest() == self._state["input"]

    def _other_input(self) -> DataError:
        return DataError(
            f"{self.part}: its {self._state['lines']:,} lines were made of other input; give the same again, or delete "
            "it to start anew"
        )

    def write(self, lines: Sequence[str]) -> None:
        """Add them, and what they were made of."""
        data = "".join(f"{line}\n" for line in lines).encode()
        with unbroken():
            try:
                file = self._opened()
                file.write(data)
                file.flush()
            except OSError as error:
                error.filename = error.filename or str(self.part)  # a full disk does not say where
                raise
            self._state |= {"lines": self._seen, "input": self._input.hexdigest(), "bytes": file.tell()}
            write_text(self.record, json.dumps(self._state, indent=2) + "\n")

    def _opened(self) -> BinaryIO:
        """The part, cut to what is recorded."""
        if self._file is None:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("r+b" if self.part.exists() else "wb")
            self._file.truncate(self._state["bytes"])
            self._file.seek(0, os.SEEK_END)
            if self.header is not None and not self._state["bytes"]:
                self._file.write(f"{self.header}\n".encode())
        return self._file

    def finish(self) -> None:
        """Give the file its name."""
        if self._seen < self._state["lines"]:
            raise self._other_input()
        with unbroken():
            file = self._opened()
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self.part, self.path)
            self.record.unlink(missing_ok=True)


def whole_file(
    own: argparse.Namespace, models: Sequence[tuple[Path, Sequence[str]]], header: str | None = None, **more: Any
) -> WholeFile:
    """The file that --output names, tied to the flags that what is in it depends on."""
    digests = []
    for path, _ in models:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    made_with = {
        "verb": own.verb,
        "checkpoints": digests,
        "flags": " ".join(models[0][1]),
        "max_tokens": own.max_tokens,
        "shard": own.shard and str(own.shard),
        **more,
    }
    return WholeFile(own.output, made_with, own.resume, header)


def write_all(
    lines: Iterable[Line],
    total: int | None,
    shard: Shard | None,
    translator: Callable[[Sequence[Line]], list[str]],
    sink: Sink,
    show: Callable[[Line, str], str],
) -> None:
    """Translate the lines, or a shard of them, and write what `show` makes of each and its cleaned translation."""
    if shard is not None:
        if total is None:
            raise UsageError(f"--shard {shard} needs a FILE whose lines can be counted, not a pipe")
        part = shard.lines(total)
        lines, total = itertools.islice(lines, part.start, part.stop), len(part)
    lines, count = iter(lines), 0
    watched = sys.stderr.isatty() and not (isinstance(sink, StandardOutput) and sys.stdout.isatty())
    try:
        with tqdm(total=total, desc="translating", unit=" lines", dynamic_ncols=True, disable=not watched) as bar:
            while chunk := list(itertools.islice(lines, CHUNK)):
                if sink.wants(chunk):
                    said = translator(chunk)
                    sink.write([show(line, text) for line, text in zip(chunk, said, strict=True)])
                bar.update(len(chunk))
                count += len(chunk)
        sink.finish()
        if not count and sys.stderr.isatty():
            print("leeml: no lines came in", file=sys.stderr)
    except BaseException:
        if isinstance(sink, WholeFile) and sink.part.exists():
            print("leeml: go on with the same command and --resume", file=sys.stderr)
        raise


def main(args: list[str]) -> int:
    """Translate files or standard input."""
    parser = Parser(
        prog="leeml translate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
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
        raise UsageError("--resume needs --output, the file to go on with")
    if not own.files and sys.stdin.isatty():
        raise UsageError(f"nothing to translate: {parser.prog} ... FILE, or {parser.prog} ... < FILE")
    models = planned(own, flags)
    sink: Sink = StandardOutput() if own.output is None else whole_file(own, models, cleaned=own.cleaned)
    countable = own.files and all(stat.S_ISREG(path.stat().st_mode) for path in own.files)
    total = sum(1 for _ in read(own.files)) if countable else None  # and all is known to be UTF-8
    translator = LineTranslator(models, own.device, own.max_tokens)
    restore = (lambda text: text) if own.cleaned else RESTORE[translator.target]
    try:
        write_all(read(own.files), total, own.shard, translator, sink, lambda line, text: restore(text))
    except BrokenPipeError:  # `| head` has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes to when it ends
        return CLOSED
    return 0
