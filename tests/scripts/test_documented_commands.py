"""Every leeml command in README.md, docs/ and the studies' page is understood as it stands there; nothing is run.

README.zh.md has the same commands (tests/test_docs.py).
"""

import functools
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import answer, works

from scripts import kfold, leeml
from scripts.cli.homeworks import data_class
from scripts.studies.lab import machine
from scripts.train import plan

PROJECT = Path(__file__).resolve().parent.parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(leeml \w+ [^`]*--config [^`]+)`")


def commands():
    """Each command once, with the first page that names it."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
        lines += INLINE.findall(BLOCK.sub("", text))
        for line in lines:
            words = shlex.split(line, comments=True)
            if words[:1] == ["leeml"] and "..." not in words:
                found.setdefault(" ".join(words[1:]), page.name)
    for name in machine.names():
        found.setdefault(machine.load(name).again[0].removeprefix("leeml "), f"study {name}")
    return [pytest.param(page, line, id=f"{page}: {line}") for line, page in found.items()]


class Parsed(Exception):
    """Raised in place of the work that a command would begin."""


def parsed(*args, **options):
    raise Parsed


def test_there_are_commands():
    named = {param.values[1].split()[0] for param in commands()}
    assert {"fit", "test", "predict", "kfold", "data", "translate", "distill", "bench", "study"} <= named


def test_every_subcommand_has_a_row():
    rows = re.findall(r"^\| ([^|]+) \|", (PROJECT / "docs" / "commands.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(leeml.SUBCOMMANDS) <= named


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_documented_command_is_understood(page, line, run, monkeypatch):
    """Folders and files that exist only in the docs are replaced; a run is one of the page's homework."""
    words = re.split(r" (?:\||&&|;|>) ", line)[0].split()
    subcommand = words[0]
    if subcommand in ("validate", "test", "predict", "fit"):
        for config in (PROJECT / "configs" / page.split(".")[0]).glob("simple.yaml"):
            shutil.copy(config, run / "config.yaml")
        for i, flag in enumerate(words[:-1]):
            if flag == "--run_dir" and (subcommand != "fit" or "--resume" in words):
                words[i + 1] = str(run)
            if flag == "--ckpt_path" and words[i + 1] not in ("best", "last"):
                words[i + 1] = str(run / "checkpoints" / "best.ckpt")
        works(*plan(words).line, "--print_config")
    elif subcommand == "kfold":

        def parse_only(args, **options):
            assert answer(*args, "--print_config").code == 0
            raise Parsed

        monkeypatch.setattr(kfold, "settle", lambda *args: ([], 1))  # of a budget, which would be measured
        monkeypatch.setattr(kfold, "run_cli", parse_only)
        with pytest.raises(Parsed):
            kfold.main(words)
    elif subcommand in ("translate", "distill"):
        module = importlib.import_module(f"scripts.{subcommand}")
        monkeypatch.setattr(module, "planned", parsed)
        with pytest.raises(Parsed):
            module.main(words)
    elif subcommand in ("plan", "backtranslate"):
        module = importlib.import_module(f"scripts.{subcommand}")
        monkeypatch.setattr(module, "estimate", parsed)
        with pytest.raises(Parsed):
            module.main(words)
    elif subcommand == "data":
        for method in ("sample", "fetch", "prepare", "describe"):
            cls = data_class(words[2])  # its flags come from the signature, which stays
            monkeypatch.setattr(cls, method, functools.wraps(getattr(cls, method))(lambda *args, **options: []))
        works(*words)
    elif subcommand == "bench" and words[1].startswith("hw"):
        bench = importlib.import_module(f"scripts.benches.{words[1]}")
        for part in ("speed", "accuracy", "decoding"):
            monkeypatch.setattr(bench, part, lambda: None, raising=part != "decoding")
        monkeypatch.setattr("scripts.bench.compare", lambda *args: {})
        works(*words)
    elif subcommand == "study":
        study = importlib.import_module("scripts.study")
        monkeypatch.setattr(study, "run_studies", lambda *args: ([], {}))
        monkeypatch.setattr(study, "write_text", lambda *args: None)
        works(*words)
    else:  # its help, or that of its part as in `leeml runs diff`, knows every option
        known = works(subcommand, "--help").out + answer(*words[:2], "--help").out
        for word in words:
            assert not word.startswith("--") or word.split("=")[0] in known, word
