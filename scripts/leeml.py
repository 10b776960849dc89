"""The command `leeml`: finds the subcommand, turns a user's mistake into one line, imports torch only when it must."""

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from callbacks.exit_codes import TERMINATED
from datamodules.files.places import cache_folder

SUBCOMMANDS = {
    "fit": ("train", "train a model: --config configs/hw1_covid/medium.yaml [--data.root DIR] [--run_dir DIR]"),
    "validate": ("train", "score a run's best checkpoint on its held-out rows: --run_dir DIR"),
    "test": ("train", "score it on labelled test data, else on the held-out rows: --run_dir DIR [--data.root DIR]"),
    "predict": ("train", "write the course's submission file: --run_dir DIR [--data.root DIR] [--output FILE]"),
    "translate": ("translate", "translate lines of text with a run of HW5: --run_dir DIR [FILE] [--output FILE]"),
    "demo": ("demo", "try trained runs by hand, on a page in the browser: --run_dir RUN [RUN ...]"),
    "distill": ("distill", "write a run's translations of its own training pairs: --run_dir DIR --output FILE.tsv"),
    "backtranslate": ("backtranslate", "rounds of back-translation: --config ... --mono FILE.zh --run_dir DIR"),
    "kfold": ("kfold", "cross-validation and an ensemble of the folds: --config ... --folds 5"),
    "tune": ("tune", "search hyper-parameters by Optuna: tune configs/sweeps/hw1_covid.yaml --trials 20"),
    "plan": ("plan", "memory and hours of a config on a card, without both: --config ... [--card t4], or --table"),
    "runs": ("runs", "list runs with their scores: runs [DIR], or what differs between two: runs diff A B"),
    "doctor": ("doctor", "versions, devices, data, fonts, disk: what a bug report should hold"),
    "ensemble": ("ensemble", "one submission from several runs of HW1 to HW4: ensemble RUN RUN ... [--weights search]"),
    "export": ("export", "a run as a folder that needs no leeml: --run_dir DIR [--format onnx | torch] [--output DIR]"),
    "data": ("data", "get data and look at it: sample | fetch | prepare | describe <homework> [DIR]"),
    "bench": ("bench", "measure speed and accuracy against plain references: bench hw1_covid"),
    "study": ("study", "try an idea of the lectures, claim by claim: study list | NAME | all --report DIR"),
}

QUICK = ("runs", "doctor", "data")  # do their work without PyTorch, or say themselves what takes long
CLOSED = 128 + 13  # what a shell reports of a tool that SIGPIPE ended: not all was read, and pipefail may know
IN_PIPES = ("translate",)  # say nothing on stderr but what went wrong, unless it is a terminal

NEXT = """leeml: the homeworks of Hung-yi Lee's machine learning course, in PyTorch Lightning

No data yet? Make a small generated set (data/ of the project), then train on it:
  leeml data sample hw1_covid
  leeml fit --config configs/hw1_covid/medium.yaml

More: leeml --help, leeml fit --help, docs/commands.md"""


REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space and run it again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions or choose another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is in the way of a folder, choose another place"),
    errno.EISDIR: "a folder is in the way of a file, choose another name",
    errno.ENOENT: "check the path",
}


def usage() -> str:
    """The help of leeml: all subcommands, one line each."""
    lines = [f"  {name:<13} {text}" for name, (_, text) in SUBCOMMANDS.items()]
    return "usage: leeml SUBCOMMAND ...\n\n" + "\n".join(lines) + "\n\nEach subcommand has its own --help."


def explain(error: BaseException) -> str | None:
    """One line for a mistake that the user can fix; None for a fault of ours, which deserves its traceback."""
    kind = type(error).__name__
    if kind in ("DataError", "UsageError", "MisconfigurationException", "NotFiniteError"):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        where = error.filename2 or error.filename or "while writing"
        in_cache = str(where).startswith(f"{cache_folder()}{os.sep}")
        hint = " (the cache: LEEML_CACHE names another folder)" if in_cache else ""
        return f"{where}: {os.strerror(error.errno).lower()}; {REMEDIES[error.errno]}{hint}"
    if kind == "RuntimeError" and "home directory" in str(error):  # Path.expanduser says no more
        return "a path begins with ~ and a name that is no user of this machine; write the folder out"
    if str(error).startswith("Early stopping conditioned on metric"):
        return f"{error}; let the validation run, or remove EarlyStopping"
    if error.__cause__ is not None:
        return explain(error.__cause__)
    return None


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, with everything tidied up, where it would end the process at once."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def file_of(args: list[str]) -> str:
    """The file in scripts/ that runs a subcommand: predict with several runs, and fit with a budget, have their own."""
    names = [arg.split("=")[0] for arg in args]
    if args[0] == "predict" and names.count("--run_dir") > 1:
        return "ensemble"
    return "run.budget" if args[0] == "fit" and "--budget" in names else SUBCOMMANDS[args[0]][0]


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code.

    0: done; 1: cannot be done; 2: not understood; 130: stopped by hand (SIGINT); 141: nobody reads on (SIGPIPE); 143:
    stopped by a scheduler (SIGTERM).
    """
    args = sys.argv[1:] if argv is None else argv
    if not args:
        print(NEXT)
        return 0
    if args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] not in SUBCOMMANDS:
        import difflib

        near = difflib.get_close_matches(args[0], SUBCOMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see leeml --help"
        print(f"leeml: error: no subcommand {args[0]!r}; {hint}", file=sys.stderr)
        return 2
    if args[0] not in QUICK and "torch" not in sys.modules and (args[0] not in IN_PIPES or sys.stderr.isatty()):
        print(f"leeml {args[0]}: loading PyTorch ...", file=sys.stderr, flush=True)
    try:
        with ended_by_signal():
            code: int = importlib.import_module(f"scripts.{file_of(args)}").main(args)
            sys.stdout.flush()
            return code
    except (KeyboardInterrupt, SystemExit) as stop:
        by_hand = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        if not by_hand and stop.code != TERMINATED:  # type: ignore[union-attr]
            raise
        print("leeml: stopped", file=sys.stderr)  # Lightning makes a SystemExit of Ctrl-C
        return 130 if by_hand else TERMINATED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and args[0] in (*QUICK, *IN_PIPES):  # `| head` has heard enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes to when it ends
            return CLOSED
        text = None if os.environ.get("LEEML_DEBUG") else explain(error)
        if text is None:
            raise
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        print(f"leeml: error: {'; '.join(lines)}", file=sys.stderr)
        return 2 if type(error).__name__ == "UsageError" else 1


if __name__ == "__main__":
    sys.exit(main())
