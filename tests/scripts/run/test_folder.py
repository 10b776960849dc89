import pytest

from datamodules.errors import DataError
from scripts.run.folder import RunFolder


@pytest.mark.parametrize(("there", "kept"), [("best last", "best"), ("best", "best"), ("last", "last")])
def test_the_best_checkpoint_stands_for_a_run_or_else_the_last(tmp_path, there, kept):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for name in there.split():
        (run.checkpoints / f"{name}.ckpt").touch()
    assert run.kept() == tmp_path / "checkpoints" / f"{kept}.ckpt"


def test_a_run_without_a_checkpoint_names_the_one_it_should_have(tmp_path):
    with pytest.raises(DataError, match=r"best\.ckpt: no such checkpoint in this run \(found: none\)"):
        RunFolder(tmp_path).kept()
