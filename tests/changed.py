"""Prints the test files that belong to what changed since the branch left main: `make check` runs them.

Tests mirror the tree, so modules/nets/cnn.py belongs to tests/modules/nets/test_cnn.py. A file without such a test
belongs to all tests that import it. The rules of the tree and the docs are always tested; they are quick.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = ("tests/test_layout.py", "tests/test_docs.py")


def git(*args: str) -> list[str]:
    """Lines of git's answer; none where git or the branch is missing."""
    try:
        said = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return said.stdout.split("\n")[:-1] if said.returncode == 0 else []


def changed() -> list[str]:
    """Paths that differ from where the branch left main: committed, staged, edited or new."""
    start = git("merge-base", "HEAD", "main") or ["HEAD"]
    return sorted({*git("diff", "--name-only", start[0]), *git("ls-files", "--others", "--exclude-standard")})


def importing(path: Path) -> list[str]:
    """Test files that import a module of the project."""
    name = re.escape(".".join(path.with_suffix("").parts))
    parent, stem = name.rpartition(r"\.")[::2]
    imported = re.compile(rf"^\s*(from|import) {name}\b|^\s*from {parent} import .*\b{stem}\b", re.MULTILINE)
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return [t.relative_to(ROOT).as_posix() for t in tests if imported.search(t.read_text(encoding="utf-8"))]


def belonging(paths: list[str]) -> list[str]:
    """Test files, relative to the project: the changed ones, those that mirror a changed file, or that import it."""
    found = dict.fromkeys(ALWAYS)
    for path in map(Path, paths):
        test = path if path.parts[0] == "tests" else Path("tests") / path.parent / f"test_{path.name}"
        if test.name.startswith("test_") and test.suffix == ".py" and (ROOT / test).is_file():
            found[test.as_posix()] = None
        elif path.suffix == ".py" and path.parts[0] != "tests":
            found.update(dict.fromkeys(importing(path)))
    return list(found)


if __name__ == "__main__":
    print(*belonging(changed()))
