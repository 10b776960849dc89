"""Rules of the tree: who may import whom, what stands where, and that the files of a homework come together."""

import ast
import graphlib
import importlib
import pkgutil
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

import callbacks
import datamodules
import modules
from datamodules.base import HomeworkData
from modules.base import HomeworkModule
from scripts import benches
from scripts.cli.homeworks import homeworks
from scripts.studies.lab import machine

ROOT = Path(__file__).parent.parent
OURS = ("modules", "datamodules", "callbacks", "scripts")
ALLOWED = {
    "modules/nets": {"modules.nets"},
    "modules": {"modules"},
    "datamodules": {"datamodules"},
    "callbacks": {"callbacks"},
    "scripts": set(OURS),
}
KINDS = ("files", "images", "speech", "tables", "text")  # of data: folders of datamodules/ that know no homework
FILES = sorted(path for ours in OURS for path in (ROOT / ours).rglob("*.py"))


def imports(path: Path, known: frozenset[str] = frozenset()) -> set[str]:
    """Modules that a file imports, also within functions; `from a import b` is a.b where that is a known module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole[name] if whole[name] in known else node.module for name in whole}
    return found


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(files: list[Path], root: Path) -> list[str]:
    """Modules that import each other in a circle, one after the other; none where there is no circle."""
    by_name = {module_of(path, root): path for path in files}
    known = frozenset(by_name)
    try:
        graphlib.TopologicalSorter({name: imports(path, known) & known for name, path in by_name.items()}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_keep_to_the_rules(path):
    folder = "modules/nets" if path.is_relative_to(ROOT / "modules/nets") else path.relative_to(ROOT).parts[0]
    for name in imports(path):
        if name.split(".")[0] in OURS:
            assert any(name == a or name.startswith(a + ".") for a in ALLOWED[folder]), f"{path} imports {name}"
        if folder == "modules/nets":
            assert "lightning" not in name, f"{path} imports {name}"


def test_the_rules_are_seen_to_be_broken(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from lightning.pytorch import Trainer\nimport datamodules.base\n")
    assert imports(bad) == {"lightning.pytorch", "datamodules.base"}


def test_no_modules_import_each_other_in_a_circle():
    assert circle(FILES, ROOT) == []


def test_a_circle_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("from b import x\n")
    (tmp_path / "b.py").write_text("def f():\n    from c import y\n")
    (tmp_path / "c.py").write_text("")
    files = sorted(tmp_path.glob("*.py"))
    assert circle(files, tmp_path) == []
    (tmp_path / "c.py").write_text("import a\n")
    assert sorted(circle(files, tmp_path)[1:]) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_data_know_no_homework(kind):
    """They import each other's files, errors and helpers, but neither a homework nor what stands on all of them."""
    for path in (ROOT / "datamodules" / kind).rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] == "datamodules":
                part = name.split(".")[1]
                assert part in ("errors", "files", kind), f"{path} imports {name}"


def test_every_folder_of_code_is_a_package_and_is_known():
    found = {path.parent.relative_to(ROOT).as_posix() for path in FILES}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in found)
    inner = {folder for folder in found if folder.startswith("datamodules/")}
    assert inner == {f"datamodules/{kind}" for kind in KINDS}
    inner = {folder for folder in found if folder.startswith("modules/")}
    assert inner == {"modules/nets", "modules/pictures", "modules/translation"}


def test_the_front_of_datamodules_and_modules_holds_homeworks_and_what_all_share():
    front = {path.stem for path in (ROOT / "datamodules").glob("*.py")} - set(homeworks())
    assert front == {"__init__", "base", "course", "errors", "generated", "samplers"}


def test_listings_skip_helpers():
    """What finds homeworks, benches and studies by their files takes no package and no file of helpers for one."""
    named = {p.stem for p in (ROOT / "datamodules").glob("hw*.py")}
    assert set(homeworks()) == named
    assert {m.name for m in pkgutil.iter_modules(benches.__path__) if m.name.startswith("hw")} == named
    found = {p.stem for p in (ROOT / "scripts/studies").glob("*.py")} - {"__init__"}
    assert set(machine.names()) == found
    assert all(machine.load(name).statements for name in found)


def test_what_a_config_names_by_its_short_name_stands_in_front():
    """Configs find it by files, not by packages: those hold no homework's module or data, and no callback."""
    for package in (modules, datamodules, callbacks):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.count(".") > 1:
                for value in vars(importlib.import_module(found.name)).values():
                    if isinstance(value, type) and value.__module__ == found.name:
                        assert not issubclass(value, HomeworkModule | HomeworkData | Callback), f"{value} in a package"


def back_doors(text: str) -> list[int]:
    """Lines that reach for a trainer's datamodule, or put a trainer into an object."""
    nodes = list(ast.walk(ast.parse(text)))
    reached = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "datamodule"]
    reached += [n for n in nodes if isinstance(n, ast.Constant) and n.value == "datamodule"]
    put = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr in ("trainer", "_trainer")]
    return sorted(n.lineno for n in (*reached, *(n for n in put if isinstance(n.ctx, ast.Store))))


def test_facts_are_handed_over_not_fetched():
    """A module knows no datamodule, and neither gets a trainer but Lightning's (docs/architecture.md)."""
    assert back_doors("a = self.trainer.datamodule\ndata.trainer = b\ngetattr(t, 'datamodule')\nx = data.trainer") == [
        1,
        2,
        3,
    ]
    for ours in ("modules", "datamodules"):
        found = {str(path): back_doors(path.read_text()) for path in (ROOT / ours).rglob("*.py")}
        assert not any(found.values()), {path: lines for path, lines in found.items() if lines}


def test_every_homework_has_module_datamodule_and_configs():
    names = {p.stem for p in (ROOT / "datamodules").glob("hw*.py")}
    assert names
    assert names == {p.name for p in (ROOT / "configs").glob("hw*")}
    found = {p.stem for p in (ROOT / "modules").glob("hw*.py")}
    assert names <= found
    further = found - names  # such as hw5_parallel: of a homework that is there
    assert {name.split("_")[0] for name in further} <= {name.split("_")[0] for name in names}


def test_tests_mirror_the_tree():
    """tests/<folder>/test_<name>.py tests <folder>/<name>.py, or one of a few that say what they test themselves."""
    beyond = {
        "modules/test_translator_objectives.py",  # of modules/objectives.py and modules/hw5_translation.py together
        "callbacks/test_wandb.py",  # of callbacks/wandb_record.py and Lightning's logger
    }
    for folder in ("modules", "datamodules", "callbacks"):
        for path in (ROOT / "tests" / folder).rglob("test_*.py"):
            place = path.relative_to(ROOT / "tests")
            if place.as_posix() not in beyond:
                wanted = ROOT / place.parent / f"{place.stem.removeprefix('test_')}.py"
                assert wanted.is_file(), f"tests/{place}: there is no {wanted.relative_to(ROOT)}"
