"""scripts/launch as docs/gpu.md names it, under commands that stand for the real ones: what it starts is understood."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import works

from datamodules.files.places import PROJECT
from scripts.train import plan

COMMANDS = {
    "leeml": 'printf "%s\\n" "$@" >"$STATE/words"\n',
    "nvidia-smi": "for card in 0 1 2 3 4 5 6 7; do echo GPU $card; done\n",
    "torchrun": 'echo "$*" >"$STATE/asked"\nwhile [ "$1" != --no_python ]; do shift; done\nshift\nexec "$@"\n',
}
LINES = re.findall(
    r"`((?:[A-Z]+=\S+ )*scripts/launch/(?:gpu|torchrun)\.sh [^`]+)`", (PROJECT / "docs" / "gpu.md").read_text("utf-8")
)


def test_the_page_names_both() -> None:
    assert {line.split("scripts/launch/")[1].split(".sh")[0] for line in LINES} == {"gpu", "torchrun"}


@pytest.mark.parametrize("line", [*LINES, "NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 GPUS=4 " + LINES[1]])
def test_a_launcher_starts_what_leeml_understands(line: str, tmp_path: Path) -> None:
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + text)
        (tmp_path / name).chmod(0o755)
    words = line.replace("...", "--config configs/hw1_covid/medium.yaml").split()
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    place = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "STATE": str(tmp_path)}
    command = ["bash", *words[len(settings) :]]
    subprocess.run(command, cwd=PROJECT, env=os.environ | place | settings, check=True)
    started = (tmp_path / "words").read_text().splitlines()
    trainer = yaml.safe_load(works(*plan(started).line, "--print_config").out)["trainer"]
    several = "torchrun" in line
    cards = int(settings.get("GPUS", 8))
    assert trainer["accelerator"] == settings.get("ACCELERATOR", "gpu")
    assert trainer["strategy"] == ("ddp" if several else "auto")
    if several:
        assert (int(trainer["devices"]), trainer["num_nodes"]) == (cards, int(settings.get("NODES", 1)))
        asked = (tmp_path / "asked").read_text()
        assert f"--nproc_per_node {cards} --master_addr {settings.get('MASTER_ADDR', '127.0.0.1')}" in asked
    assert (trainer["precision"] == "auto") == ("ACCELERATOR" not in settings)
