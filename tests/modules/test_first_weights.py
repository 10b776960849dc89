"""A fit begins with an earlier run's weights, or says in one line why it cannot."""

import pickle
from collections import OrderedDict

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from modules.first_weights import load_first_weights

FACTS = {"source": "en", "tokenizer": torch.arange(9)}


def checkpoint(**changes):
    torch.manual_seed(1)
    return {"homework": "hw", "facts": FACTS, "state_dict": nn.Linear(3, 2).state_dict()} | changes


def load(path, module):
    load_first_weights(module, "hw", FACTS, str(path), ["source", "tokenizer"])


@pytest.mark.parametrize("name", ["some.ckpt", "checkpoints/best.ckpt"])
def test_takes_the_weights_of_a_checkpoint_or_of_a_run(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save(checkpoint(), path)
    module = nn.Linear(3, 2)
    load(path if name == "some.ckpt" else tmp_path, module)
    for key, value in checkpoint()["state_dict"].items():
        assert torch.equal(module.state_dict()[key], value)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "no such checkpoint"),
        (b"half", "damaged"),
        (pickle.dumps(print), "damaged, or not"),
        ({"state_dict": {}}, "not a checkpoint of leeml"),
        (checkpoint(homework="hw1"), "a checkpoint of hw1, the model is of hw"),
        (checkpoint(facts=FACTS | {"source": "zh"}), r"a source of another run \(zh, here en\)"),
        (checkpoint(facts=FACTS | {"tokenizer": torch.arange(8)}), "a tokenizer of another run; take"),
        (checkpoint(state_dict=nn.Linear(4, 2).state_dict()), r"weight is \(2, 4\) in the file, \(2, 3\) in the model"),
        (checkpoint(state_dict=nn.Linear(3, 2, bias=False).state_dict()), r"bias is absent in the file, \(2,\) in"),
        (checkpoint(state_dict=nn.Sequential(nn.Linear(3, 2)).state_dict()), "absent"),
    ],
)
def test_what_is_of_another_kind_is_refused(made, says, tmp_path):
    path = tmp_path / "some.ckpt"
    if isinstance(made, bytes):
        path.write_bytes(made)
    elif made is not None:
        torch.save(made, path)
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(MisconfigurationException, match=says) as error:
        load(path, module)
    assert str(error.value).startswith(f"model.start: {path}: ")
    assert "\n" not in str(error.value)
    assert torch.equal(module.weight, before)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"checkpoints/best\.ckpt: no such checkpoint"):
        load(tmp_path, nn.Linear(3, 2))


def test_a_part_of_its_own_keeps_the_weights_it_has(tmp_path):
    """All of it or nothing: a file that has the part, but not as it is here, is refused."""
    module = nn.Sequential(OrderedDict(net=nn.Linear(3, 2), own=nn.Linear(2, 2)))
    shared = {f"net.{key}": value for key, value in checkpoint()["state_dict"].items()}
    before = module.own.weight.clone()
    torch.save(checkpoint(state_dict=shared), tmp_path / "some.ckpt")
    with pytest.raises(MisconfigurationException, match=r"own.bias is absent in the file"):
        load(tmp_path / "some.ckpt", module)
    load_first_weights(module, "hw", FACTS, str(tmp_path / "some.ckpt"), ["source"], ["net"])
    assert torch.equal(module.net.weight, shared["net.weight"])
    assert torch.equal(module.own.weight, before)
    torch.save(checkpoint(state_dict=shared | {"own.weight": torch.zeros(2, 2)}), tmp_path / "half.ckpt")
    with pytest.raises(MisconfigurationException, match=r"own.bias is absent in the file"):
        load_first_weights(module, "hw", FACTS, str(tmp_path / "half.ckpt"), ["source"], ["net"])
    torch.save(checkpoint(state_dict=shared | {"other.weight": torch.zeros(2, 2)}), tmp_path / "more.ckpt")
    with pytest.raises(MisconfigurationException, match=r"other.weight is \(2, 2\) in the file, absent in the model"):
        load_first_weights(module, "hw", FACTS, str(tmp_path / "more.ckpt"), ["source"], ["net", "other"])
    load_first_weights(module, "hw", FACTS, str(tmp_path / "more.ckpt"), ["source"], ["net"])
    assert torch.equal(module.own.weight, before)
