"""What the Makefile gives to the commands that it starts."""

import os
import shutil
import subprocess

import pytest

from datamodules.files.places import PROJECT


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_commands_keep_bytecode_where_the_environment_says_that_python_should_not() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "LEFT_ALONE": "1"}
    done = subprocess.run(
        ["make", "-s", "-f", "Makefile", "-f", "-", "show"],
        input="show:\n\t@env\n", cwd=PROJECT, env=environment, text=True, capture_output=True, check=True,
    )  # fmt: skip
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "LEFT_ALONE" in names
    assert "PYTHONDONTWRITEBYTECODE" not in names
