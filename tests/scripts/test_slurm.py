"""scripts/launch/slurm.sh under commands that stand for SLURM's: signal, save, requeue, resume."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.files.places import PROJECT

pytestmark = pytest.mark.slow

COMMANDS = {
    # runs the step in its own process, as one node's
    "srun": """\
#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=0 ] || exit 9
shift
echo $$ >"$STATE/step"
export SLURM_NODEID=0 BATCH_SCRIPT=$PPID
exec "$@"
""",
    "scancel": """\
#!/usr/bin/env bash
[ "$*" = "--signal=TERM $SLURM_JOB_ID.0" ] || exit 9
kill -s TERM "$(cat "$STATE/step")"
""",
    "scontrol": """\
#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" >>"$STATE/requeued"; else echo 127.0.0.1; fi
""",
    # the batch script is told to stop within the sixth step, which then waits until the news has come here
    "leeml": f"""\
#!{sys.executable}
import os, signal, sys
from modules.hw1_covid import CovidRegressor
from scripts.leeml import main

step = CovidRegressor.training_step

def training_step(self, batch, batch_idx):
    if self.trainer.global_step == 5 and "--resume" not in sys.argv:
        seen, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told)
        os.kill(int(os.environ["BATCH_SCRIPT"]), signal.SIGTERM)
        os.read(seen, 1)
    return step(self, batch, batch_idx)

CovidRegressor.training_step = training_step
sys.exit(main(sys.argv[1:]))
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What SLURM sets, and the commands on the PATH; the step computes on the CPU."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    with socket.socket() as free:
        for job in range(1, 10000):  # the script takes 20000 + the job's number as its port
            try:
                free.bind(("127.0.0.1", 20000 + job))
                break
            except OSError:
                continue
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_NNODES": "1", "SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "node", "SLURM_GPUS_ON_NODE": "1"}
    return {
        **os.environ,
        **slurm,
        "PATH": path,
        "PYTHONPATH": str(PROJECT),
        "STATE": str(tmp_path),
        "ACCELERATOR": "cpu",
    }


def test_a_job_that_is_told_to_stop_is_requeued_and_goes_on(
    environment: dict[str, str], experiment: Path, sample: Path, trained: Path, tmp_path: Path
) -> None:
    run, requeued = tmp_path / "run", tmp_path / "requeued"
    last = run / "checkpoints" / "last.ckpt"

    def job() -> None:
        words = ["bash", "scripts/launch/slurm.sh", run, "--config", experiment, "--data.root", sample]
        done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    job()
    assert requeued.read_text().split() == [environment["SLURM_JOB_ID"]]
    assert torch.load(last, weights_only=True)["global_step"] == 6
    job()
    assert len(requeued.read_text().split()) == 1
    found, expected = (torch.load(path, weights_only=True) for path in (last, trained / "checkpoints" / "last.ckpt"))
    assert found["global_step"] == expected["global_step"]
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
