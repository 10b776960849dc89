"""Kills runs at random moments (SIGKILL), goes on with them, and holds what they end with against undisturbed runs.

    python -m scripts.soak                              # 100 kills, at most 30 minutes on 2 cores
    python -m scripts.soak --kills 12 --minutes 4       # a first impression

Each trial is a training, k-fold, translation or study that is killed up to three times, goes on as a user would go on
with it, and is then left to its end: weights, optimizer state and files must be the same bits as those of a run that
nothing disturbed, metrics.csv included. Runs are forked from one process that has imported all, and save their state
several times a second instead of every ten, so that kills fall everywhere.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from callbacks import checkpoints
from datamodules.generated import write_covid, write_food, write_translation
from scripts import kfold, study, train, translate  # noqa: F401  # imported once, before forking
from scripts.cli.config_parser import known_classes
from scripts.leeml import main as leeml
from scripts.studies.lab import machine  # noqa: F401

KILLS = 3  # at most, of one trial
LIMIT = 600  # seconds after which a process that should have ended counts as hanging

COVID = """\
model:
  class_path: CovidRegressor
  init_args: {hidden: [16], dropout: 0.2, batch_norm: true, optimizer: {class_path: AdamW, init_args: {lr: 0.01}}}
data: {class_path: CovidData, init_args: {batch_size: 64, members: 2}}
trainer:
  max_epochs: 25
  log_every_n_steps: 1
  callbacks: [{class_path: WarmupScheduler, init_args: {warmup: 0.1}}]
"""
FOOD = """\
model:
  class_path: FoodClassifier
  init_args:
    net: {class_path: modules.nets.resnet.ResNet, init_args: {width: 8, blocks: [1, 1], dropout: 0.2}}
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
    mixup: 0.2
data:
  class_path: FoodData
  init_args:
    image_size: 16
    batch_size: 24
    augment:
    - {class_path: torchvision.transforms.v2.RandomResizedCrop, init_args: {size: 16}}
    - {class_path: torchvision.transforms.v2.RandomHorizontalFlip}
trainer: {max_epochs: 4, log_every_n_steps: 1}
"""
TRANSLATION = """\
model:
  class_path: Translator
  init_args:
    optimizer: {class_path: Adam, init_args: {lr: 0.002}}
    net:
      class_path: modules.nets.seq2seq.TransformerSeq2Seq
      init_args: {d_model: 16, heads: 2, d_ff: 32, layers: 1, dropout: 0.2, norm: pre}
data: {class_path: TranslationData, init_args: {vocabulary: 400, folds: 20, max_tokens: 600, max_length: 64, quick: 2}}
trainer: {max_epochs: 4, log_every_n_steps: 1}
"""
EMA = "--trainer.callbacks+={class_path: EMAWeightAveraging, init_args: {decay: 0.9}}"
SAMPLING = "--trainer.callbacks+={class_path: ScheduledSampling, init_args: {decay: linear}}"
CRITICAL = (
    "--model.objective={class_path: modules.objectives.PolicyGradient, init_args: {baseline: greedy, samples: 2}}"
)


@dataclass(frozen=True)
class Scenario:
    """What is started, how it is gone on with, and what must be the same at the end.

    Args:
        name: For the report.
        begin: Arguments of leeml, for a folder of the trial.
        again: Arguments that go on, of which one is drawn; the first is used where nothing is there yet.
        same: Holds a trial's folder against the undisturbed one's; returns what differs.
    """

    name: str
    begin: Callable[[Path], list[str]]
    again: Callable[[Path], list[list[str]]]
    same: Callable[[Path, Path], list[str]]


def scenarios(work: Path) -> list[Scenario]:
    """All of them; their data and first weights are made below `work`."""
    data = work / "data"
    write_covid(data / "hw1_covid")
    for name in ("covid.train.csv", "covid.test.csv"):
        lines = (data / "hw1_covid" / name).read_text().splitlines(keepends=True)
        (data / "hw1_covid" / name).write_text("".join([lines[0], *lines[1::8]]))
    write_food(data / "hw3_food")
    for path in sorted((data / "hw3_food").rglob("*_*.jpg")):
        if int(path.stem.split("_")[1]) >= 12:
            path.unlink()
    for path in write_translation(data / "hw5_translation"):
        path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:160]), "utf-8")
    (work / "lines.en").write_text((data / "hw5_translation" / "raw.en").read_text("utf-8") * 6, "utf-8")
    configs = {"covid": COVID, "food": FOOD, "translation": TRANSLATION}
    for name, text in configs.items():
        (work / f"{name}.yaml").write_text(text)
    start = work / "start"

    def fit(name: str, config: str, *flags: str) -> Scenario:
        words = ["--config", str(work / f"{config}.yaml"), "--data.root", str(data), *flags]

        def begin(path: Path) -> list[str]:
            return ["fit", *words, "--run_dir", str(path / "run")]

        def again(path: Path) -> list[list[str]]:
            if not (path / "run" / "config.yaml").is_file():
                return [begin(path)]
            return [["fit", "--run_dir", str(path / "run"), "--resume"]]

        return Scenario(name, begin, again, same_run)

    def folds(name: str, *flags: str) -> Scenario:
        words = ["--config", str(work / "covid.yaml"), "--data.root", str(data), "--folds", "3", *flags]
        words += ["--trainer.max_epochs", "8"]

        def begin(path: Path) -> list[str]:
            return ["kfold", *words, "--run_dir", str(path / "run")]

        def again(path: Path) -> list[list[str]]:
            begun = any((path / "run").rglob("config.yaml"))
            return [begin(path), *([["kfold", "--run_dir", str(path / "run"), "--resume"]] if begun else [])]

        return Scenario(name, begin, again, same_folds)

    def translated(path: Path) -> list[str]:
        words = ["--run_dir", str(start), str(work / "lines.en"), "--output", str(path / "out.zh")]
        return ["translate", *words, "--max_tokens", "300"]

    def studied(path: Path) -> list[str]:
        return ["study", "sigmoids", "--seeds", "2"]

    return [
        fit("hw1", "covid"),
        fit("hw1, EMA, accumulation 3", "covid", EMA, "--trainer.accumulate_grad_batches=3"),
        fit("hw3, no workers", "food", "--data.workers=0"),
        fit("hw3, 2 workers, EMA, accumulation 3", "food", "--data.workers=2", EMA,
            "--trainer.accumulate_grad_batches=3"),
        fit("hw5, 2 workers", "translation", "--data.workers=2"),
        fit("hw5, scheduled sampling, accumulation 3", "translation", "--data.workers=0", SAMPLING,
            "--trainer.accumulate_grad_batches=3"),
        fit("hw5, self-critical", "translation", CRITICAL, f"--model.start={start}", "--data.workers=2",
            "--trainer.max_epochs=2"),
        folds("kfold one by one", "--one_by_one"),
        folds("kfold in one pass"),
        Scenario("translate", translated, lambda path: [translated(path), [*translated(path), "--resume"]], same_lines),
        Scenario("study", studied, lambda path: [studied(path)], same_study),
    ]  # fmt: skip


# what must be the same


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two nested states are not the same bits."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{where}/{i}")]
    return [] if a == b else [where]


def same_files(path: Path, other: Path, names: Sequence[str]) -> list[str]:
    """Names of files that are not the same bytes in both folders."""
    found = []
    for name in names:
        pair = [folder / name for folder in (path, other)]
        contents = [file.read_bytes() if file.is_file() else None for file in pair]
        if contents[0] != contents[1]:
            found.append(name)
    return found


def same_run(path: Path, other: Path) -> list[str]:
    """What differs in two runs: weights, optimizer and files."""
    found = same_files(path / "run", other / "run", ["metrics.csv", "samples.csv", "scores.json"])
    for name in ("last", "best"):
        file = Path("run") / "checkpoints" / f"{name}.ckpt"
        states = [torch.load(folder / file, weights_only=True) for folder in (path, other)]
        for key in ("state_dict", "optimizer_states", "current_model_state", "global_step", "epoch"):
            found += differences(states[0].get(key), states[1].get(key), f"{name}.ckpt/{key}")
    return found + [str(part) for part in (path / "run").rglob("*.part")]


def same_folds(path: Path, other: Path) -> list[str]:
    """What differs in two k-fold runs."""
    names = [str(file.relative_to(other / "run")) for file in (other / "run").rglob("metrics.csv")]
    return same_files(path / "run", other / "run", ["out_of_fold.csv", "submission.csv", "scores.json", *names])


def same_lines(path: Path, other: Path) -> list[str]:
    """What differs in two translations."""
    return same_files(path, other, ["out.zh"])


def same_study(path: Path, other: Path) -> list[str]:
    """What differs in the measurements of two studies."""
    found = []
    for folder in (path, other):
        files = sorted((folder / "cache" / "studies").rglob("*.json"))
        found.append({file.name: json.loads(file.read_text())["measurements"] for file in files})
    return differences(found[0], found[1], "measurements")


# processes


def start(args: Sequence[str], path: Path, own_cache: bool) -> int:
    """Fork a process, with a group of its own, that runs leeml; its output goes to `path`/log.txt."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.write(log, f"$ leeml {' '.join(args)}\n".encode())
        if own_cache:
            os.environ["LEEML_CACHE"] = str(path / "cache")
        code = leeml(list(args))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """The exit code within so many seconds, or None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def kill(child: int) -> None:
    """SIGKILL to the process and those it started."""
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def trial(scenario: Scenario, path: Path, other: Path, seconds: float, chance: random.Random) -> tuple[int, str]:
    """Kills and goes on; returns the number of kills and what went wrong, if anything."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    args, kills, alone = scenario.begin(path), 0, scenario.name == "study"
    while True:
        child = start(args, path, alone)
        code = wait(child, chance.uniform(0, seconds) if kills < KILLS else LIMIT)
        if code is None and kills == KILLS:
            kill(child)
            return kills, f"did not end: leeml {' '.join(args)}"
        if code is None:
            kill(child)
            kills += 1
            args = chance.choice(scenario.again(path))
            continue
        if code:
            return kills, f"exit code {code}: leeml {' '.join(args)}"
        wrong = scenario.same(path, other)
        return kills, f"differs: {', '.join(wrong[:5])}" if wrong else ""


def work_through(number: int, jobs: int, kills: int, until: float, seed: int, work: Path, queue: Any) -> None:
    """What each of the jobs does: trials of one scenario after the other, until there are enough kills."""
    torch.set_num_threads(1)
    made = scenarios_of(work)
    chance, done, turn = random.Random(seed * 1000 + number), 0, number  # jobs share the scenarios out
    while done < kills and time.monotonic() < until:
        scenario = made[turn % len(made)]
        other = work / "undisturbed" / str(turn % len(made))
        seconds = float((other / "seconds").read_text())
        path = work / f"trial_{number}_{turn}"
        count, wrong = trial(scenario, path, other, seconds, chance)
        done += count
        queue.put((scenario.name, count, wrong, str(path)))
        if not wrong:
            shutil.rmtree(path, ignore_errors=True)
        turn += jobs
    queue.put(None)


_MADE: dict[Path, list[Scenario]] = {}


def scenarios_of(work: Path) -> list[Scenario]:
    """Those of a folder, made once."""
    if work not in _MADE:
        _MADE[work] = scenarios(work)
    return _MADE[work]


def undisturbed(work: Path) -> None:
    """Run each scenario to its end, and remember how long it took."""
    train_words = ["--config", str(work / "translation.yaml"), "--data.root", str(work / "data")]
    begun = scenarios_of(work)
    work.joinpath("first").mkdir()
    if wait(start(["fit", *train_words, "--run_dir", str(work / "start")], work / "first", False), LIMIT):
        raise SystemExit(f"the first weights could not be trained: {work / 'first' / 'log.txt'}")
    for number, scenario in enumerate(begun):
        path = work / "undisturbed" / str(number)
        path.mkdir(parents=True)
        began = time.monotonic()
        if (code := wait(start(scenario.begin(path), path, scenario.name == "study"), LIMIT)) != 0:
            raise SystemExit(f"{scenario.name} failed undisturbed ({code}): {path / 'log.txt'}")
        (path / "seconds").write_text(str(time.monotonic() - began))
        print(f"  undisturbed  {scenario.name}: {time.monotonic() - began:.1f} s", flush=True)


def main() -> int:
    """Run the trials and print a table; 1 where a run did not go on, or ended with other bits."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=30, help="no trial begins later (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    parser.add_argument("--work", type=Path, help="folder to work in, which is kept (default: a temporary one)")
    own = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    checkpoints.REST = 1
    checkpoints.LastCheckpoint.__init__.__defaults__ = (0.3,)
    work = (own.work or Path(tempfile.mkdtemp(prefix="soak_"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["LEEML_CACHE"] = str(work / "cache")
    known_classes()
    began = time.monotonic()
    _MADE[work] = [s for s in scenarios(work) if own.only in s.name]
    undisturbed(work)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    until = began + 60 * own.minutes
    share = -(-own.kills // own.jobs)
    workers = [
        context.Process(target=work_through, args=(n, own.jobs, share, until, own.seed, work, queue))
        for n in range(own.jobs)
    ]
    for worker in workers:
        worker.start()
    kills, trials, failed, running = Counter[str](), Counter[str](), Counter[str](), own.jobs
    while running:
        if (result := queue.get()) is None:
            running -= 1
            continue
        name, count, wrong, path = result
        kills[name] += count
        trials[name] += 1
        if wrong:
            failed[name] += 1
            print(f"  FAILED  {name}: {wrong} ({path})", flush=True)
    print("\n| what was killed | trials | kills | ended with other bits, or not at all |\n|---|---|---|---|")
    for name in trials:
        print(f"| {name} | {trials[name]} | {kills[name]} | {failed[name]} |")
    minutes = (time.monotonic() - began) / 60
    print(f"| all | {trials.total()} | {kills.total()} | {failed.total()} |\n\nseed {own.seed}, {minutes:.1f} minutes")
    if not failed and own.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
