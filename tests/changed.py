"""Prints the test files that belong to what changed since the branch left main: `make check` runs them.

Tests mirror the tree, so modules/nets/cnn.py belongs to tests/modules/nets/test_cnn.py. The rules of the tree and the
docs are always tested; they are quick.
"""

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


def belonging(paths: list[str]) -> list[str]:
    """Test files, relative to the project, of changed files: themselves, or those that mirror them."""
    found = dict.fromkeys(ALWAYS)
    for path in map(Path, paths):
        if path.parts[0] != "tests":
            path = Path("tests") / path.parent / f"test_{path.name}"
        if path.name.startswith("test_") and path.suffix == ".py" and (ROOT / path).is_file():
            found[path.as_posix()] = None
    return list(found)


if __name__ == "__main__":
    print(*belonging(changed()))
