"""leeml backtranslate: rounds of back-translation, from sentence pairs and monolingual text to better translators.

A round trains a translator the other way round, lets it translate --mono, lines in the target language, and trains a
new translator on the real pairs and these (Sennrich et al. 2016, arXiv 1511.06709). With --mono_source, lines in the
source language, the translator back of the next round learns from what the last one made of them (Hoang et al. 2018,
"Iterative Back-Translation for Neural Machine Translation").

Hours are said before anything begins. --run_dir holds round_1/back, round_1/pairs.tsv, round_1/forward and so on; what
was interrupted goes on with --run_dir DIR --resume.
"""

import argparse
import json
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch.nn.utils.rnn import pad_sequence

from callbacks.files import write_text
from datamodules.errors import DataError
from datamodules.hw5_translation import SIDES, TranslationData
from datamodules.text.cleaning import CLEAN, Language
from datamodules.text.tokenizer import EOS, PAD
from modules.hw5_translation import Translator
from scripts.cli.mistakes import Parser, UsageError
from scripts.cli.summary import show_summary
from scripts.kfold import read_configs
from scripts.run.budget import SAVED_EVERY, Speed, try_out
from scripts.run.folder import RunFolder
from scripts.train import find_config, own_flags, run_cli
from scripts.translate import opened, planned
from scripts.translation.chunks import write_all
from scripts.translation.reading import read
from scripts.translation.translator import Way
from scripts.translation.writing import pair_row, whole_file

RECORD = "backtranslate.json"  # what the rounds were asked for
TIMED = 600.0  # seconds of a budget whose share the trial would train for
TRANSLATED = 16  # lines that are translated on trial
SETTLED = ("--data.synthetic", "--budget", "--ckpt_path")  # what the rounds settle, or cannot keep to


class Length(NamedTuple):
    """How long a fit is, as its configuration says."""

    steps: float
    epochs: float
    accumulated: int
    interval: float
    """From one validation to the next: a share of an epoch, or as an integer batches."""

    @classmethod
    def of(cls, trainer: Any) -> "Length":
        """That of a trainer's configuration.

        Raises:
            UsageError: it has no end.
        """
        steps, epochs = (math.inf if n in (None, -1) else n for n in (trainer.max_steps, trainer.max_epochs))
        if steps == epochs == math.inf:
            raise UsageError("backtranslate needs fits that end: say --trainer.max_epochs or --trainer.max_steps")
        interval = 1.0 if trainer.val_check_interval is None else trainer.val_check_interval
        return cls(steps, epochs, trainer.accumulate_grad_batches, interval)

    def seconds(self, speed: Speed, batches: float) -> float:
        """Of a fit whose epochs have so many batches."""
        steps = min(self.steps, self.epochs * batches / self.accumulated)
        between = self.interval if isinstance(self.interval, int) else self.interval * batches
        validations = math.ceil(steps * self.accumulated / between)
        training = steps * speed.step * (1 + speed.save / SAVED_EVERY)
        return speed.setup + training + validations * (speed.validation + speed.save)


class Rounds:
    """The rounds in a folder.

    Args:
        path: The folder.
        own: Flags of backtranslate.
        line: Flags of fit that all runs share.
        source, target: Languages.
    """

    def __init__(
        self, path: Path, own: argparse.Namespace, line: Sequence[str], source: Language, target: Language
    ) -> None:
        self.path, self.own, self.line = path, own, [*line]
        self.source, self.target = source, target
        self.trust = "--trust" in self.line

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; the scores of every fit."""
        own, pairs = self.own, None
        scores: dict[str, Any] = {}
        for number in range(1, own.rounds + 1):
            folder = self.path / f"round_{number}"
            back = own.back if number == 1 else None
            if back is None:
                back = folder / "back"
                scores[f"round {number}, back"] = self._fit(back, self.target, self.source, pairs)
            pairs = self._pairs(back, own.mono, folder / "pairs.tsv", number)
            scores[f"round {number}"] = self._fit(folder / "forward", self.source, self.target, pairs)
            if number < own.rounds:
                pairs = self._pairs(folder / "forward", own.mono_source, folder / "back_pairs.tsv", number)
        return scores

    def _fit(self, path: Path, source: Language, target: Language, pairs: Path | None) -> Any:
        """Train a run, or go on with it; its score."""
        run = RunFolder(path)
        if not run.scores.is_file():  # which a fit writes at its end
            words = ["fit", *self.line, "--data.source", source, "--data.target", target, "--run_dir", str(path)]
            words += ["--data.synthetic", str(pairs)] if pairs else []
            words += ["--resume"] if run.config.is_file() else []
            cli = run_cli(words, again=f"leeml backtranslate --run_dir {shlex.quote(str(self.path))} --resume")
            show_summary("fit", cli.trainer, cli.datamodule, cli.run, None)
        return next(iter(run.read_scores().values()), None)

    def _pairs(self, run: Path, text: Path, output: Path, seed: int) -> Path:
        """Translate lines with a run, or go on; a table of pairs for data.synthetic."""
        if not output.is_file():
            own = argparse.Namespace(
                subcommand="backtranslate", run_dir=[run], ckpt_path=[], output=output, resume=True, shard=None,
                max_tokens=self.own.max_tokens, device="auto", precision="auto", trust=self.trust, way=self.own.way,
                seed=seed,
            )  # fmt: skip
            models = planned(own, [])
            sink, translator = whole_file(own, models, "\t".join(SIDES)), opened(own, models)
            total = sum(1 for _ in read([text]))
            write_all(
                read([text]), total, None, translator, sink,
                lambda line, said: pair_row(translator.source, line.text, said),
            )  # fmt: skip
        return output


def seconds_a_line(model: Translator, data: TranslationData, text: Path, way: Way) -> float:
    """Of translating the text with a model that has not learned to end its sentences: more than it will take."""
    first = [line.text for line, _ in zip(read([text]), range(TRANSLATED), strict=False)]
    sources = [ids for ids in data.tokenizer.encode([CLEAN[data.source](line) for line in first]) if ids]
    if not sources:
        return 0.0
    rows = [torch.tensor([*ids[: data.max_length - 1], EOS]) for ids in sources]
    model.eval()
    begun = time.perf_counter()
    with torch.inference_mode():
        (model.sampled if way == "sampling" else model.translate)(pad_sequence(rows, True, PAD).to(model.device))
    return (time.perf_counter() - begun) / len(first)


def estimate(own: argparse.Namespace, line: Sequence[str]) -> tuple[float, Language, Language]:
    """Seconds that all rounds take at most, by a short trial that is thrown away, and the languages."""
    lengths: list[Length] = []
    speed, cli = try_out(line, TIMED, lambda config: lengths.append(Length.of(config.trainer)))
    model, data = cli.model, cli.datamodule
    if not (isinstance(model, Translator) and isinstance(data, TranslationData)):
        raise UsageError(f"backtranslate works with runs of HW5, and not with {type(model).__name__}")
    if math.isnan(speed.step):
        raise UsageError("backtranslate: the trial ended before its steps could be timed; leave out what ends it")
    batches, real = len(data.train_dataloader()), len(data.train_rows())
    texts = {"mono": own.mono, **({"mono_source": own.mono_source} if own.rounds > 1 else {})}
    lines = {name: sum(1 for _ in read([text])) for name, text in texts.items()}
    for name, text in texts.items():
        check_language(text, f"--{name}", data.target if name == "mono" else data.source)

    def fit(more: int) -> float:
        return lengths[0].seconds(speed, batches * (1 + more / real))

    training = own.rounds * fit(lines["mono"]) + (own.rounds - 1) * fit(lines.get("mono_source", 0))
    training += 0 if own.back else fit(0)
    count = own.rounds * lines["mono"] + (own.rounds - 1) * lines.get("mono_source", 0)
    translating = count * seconds_a_line(model, data, own.mono_source or own.mono, own.way)
    print(
        f"leeml: {2 * own.rounds - bool(own.back)} fits, about {in_hours(training)}; {count:,} lines to translate, at "
        f"most {in_hours(translating)}; on this machine as busy as it is now",
        flush=True,
    )
    return training + translating, data.source, data.target


def in_hours(seconds: float) -> str:
    """A time in words."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def check_language(text: Path, flag: str, language: Language) -> None:
    """Refuse lines that are of the other language.

    Raises:
        DataError: they are, or there are none.
    """
    first = "".join(line.text for line, _ in zip(read([text]), range(100), strict=False))
    if not first.strip():
        raise DataError(f"{text}: no lines in it ({flag}); expected a sentence a line")
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in first) > len(first) / 5
    if chinese != (language == "zh"):
        raise DataError(f"{text}: does not look like {language}; {flag} wants lines in that language")


def main(args: list[str]) -> int:
    """Train backwards, translate, train forwards, as often as asked; 0 when the last round is complete."""
    parser = Parser(
        prog="leeml backtranslate", description=__doc__,
        epilog="Everything else as in leeml fit, and the same for all runs: --config ... --data.root DIR.",
    )  # fmt: skip
    parser.add_argument("--run_dir", type=Path, required=True, help="folder of the rounds")
    parser.add_argument("--resume", action="store_true", help="go on with what was interrupted there")
    parser.add_argument("--mono", type=Path, help="UTF-8 text in the target language, a sentence a line, plain or .gz")
    parser.add_argument("--mono_source", type=Path, help="the same in the source language; for --rounds above 1")
    parser.add_argument("--rounds", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--back", type=Path, help="run that translates back in the first round, instead of a new one")
    parser.add_argument("--way", choices=get_args(Way), default="beam", help="see leeml translate (default: beam)")
    parser.add_argument("--max_tokens", type=int, default=4096, help="of a batch in translating (default: %(default)s)")
    typed = parser.parse_known_args(args[1:])[0]
    path = typed.run_dir.absolute()
    record = path / RECORD
    if typed.resume:
        if not record.is_file():
            raise DataError(f"{path}: holds no rounds to go on with; start them without --resume")
        before = json.loads(record.read_text(encoding="utf-8"))
        words = [word for word in args[1:] if word != "--resume"]
        if len(words) > 2 and words != before["words"]:  # more than --run_dir
            raise DataError(
                f"{path}: begun with other flags; go on with: leeml backtranslate --run_dir {path} --resume"
            )
    else:
        if record.is_file():
            raise DataError(f"{path}: holds rounds already; add --resume to go on, or choose another --run_dir")
        before = {"words": args[1:]}
    own, line = parser.parse_known_args(before["words"])
    if own.mono is None:
        raise UsageError("backtranslate needs --mono FILE, lines in the target language")
    if own.rounds < 1 or (own.rounds > 1 and own.mono_source is None):
        raise UsageError(f"--rounds {own.rounds}: expected 1, or more with --mono_source FILE for the translators back")
    if wrong := [word for word in line if word.startswith(SETTLED)]:
        raise UsageError(f"{wrong[0].split('=')[0]}: backtranslate settles that itself; leave it out")
    config = read_configs([find_config(name) for name in own_flags().parse_known_args(line)[0].config])
    config = json.loads(json.dumps(config, default=str))
    if before.setdefault("config", config) != config:
        raise DataError(f"{path}: the config was changed after the rounds began; change it back, or begin new ones")
    if "languages" not in before:
        total, *before["languages"] = estimate(own, line)
        print(f"leeml: in all {in_hours(total)} at most", flush=True)
        path.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(before, indent=2) + "\n")
    scores = Rounds(path, own, line, *before["languages"]).run()
    print("\n" + "\n".join(f"  {name:<14}  {Translator.monitor} {score}" for name, score in scores.items()))
    return 0
