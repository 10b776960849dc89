"""setup.py: no wheel of the code is built, an editable install is (docs/commands.md, Install)."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build(kind, source):
    """What setuptools says when pip asks it for this."""
    code = f"from setuptools import build_meta; build_meta.{kind}({str(source)!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)


def test_a_wheel_is_refused_in_one_line_and_an_editable_install_is_not(tmp_path):
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/__init__.py").touch()
    refused = build("build_wheel", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("leeml is not built as a wheel")
    assert "pip install -e ." in refused.stderr
    assert not list(tmp_path.glob("*.whl"))
    assert build("build_editable", tmp_path).returncode == 0
    assert len(list(tmp_path.glob("*.whl"))) == 1
