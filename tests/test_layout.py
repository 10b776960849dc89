"""Rules of the tree: who may import whom, and that the configs and files of a homework come together."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("modules", "datamodules", "callbacks", "scripts")
ALLOWED = {
    "modules/nets": {"modules.nets"},
    "modules": {"modules"},
    "datamodules": {"datamodules"},
    "callbacks": {"callbacks"},
    "scripts": set(OURS),
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize(
    "path", sorted(p for o in OURS for p in (ROOT / o).rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
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


def test_every_homework_has_module_datamodule_and_configs():
    names = {p.stem for p in (ROOT / "datamodules").glob("hw*.py")}
    assert names
    assert names == {p.name for p in (ROOT / "configs").glob("hw*")}
    modules = {p.stem for p in (ROOT / "modules").glob("hw*.py")}
    assert names <= modules
    further = modules - names  # such as hw5_parallel: of a homework that is there
    assert {name.split("_")[0] for name in further} <= {name.split("_")[0] for name in names}
