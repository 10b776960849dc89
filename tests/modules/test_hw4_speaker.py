"""SpeakerClassifier: size, padding for every encoder and pooling, its losses by hand, that it learns, its pictures."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

from callbacks.compiled import Compiled
from datamodules.generated import write_speakers
from datamodules.hw4_speaker import SpeakerData
from modules.base import split_decay
from modules.hw4_speaker import SpeakerClassifier
from modules.nets.frame_encoders import ConformerFrames, TransformerFrames
from modules.nets.margin import MarginSoftmax
from modules.nets.pooling import POOLINGS
from modules.nets.recurrent import Recurrent
from modules.nets.spec_augment import SpecAugment

FACTS = {"classes": [f"id{n}" for n in range(7)], "features": 5, "held_out": ""}
SMALL = {"d_model": 8, "heads": 2, "d_ff": 12, "layers": 2, "dropout": 0.3}
ENCODERS = {
    **{
        f"transformer {norm} {positions}": functools.partial(TransformerFrames, norm=norm, positions=positions, **SMALL)
        for norm in ("pre", "post")
        for positions in ("sinusoidal", "learned", "none")
    },
    **{
        f"conformer relative={relative}": functools.partial(ConformerFrames, kernel=5, relative=relative, **SMALL)
        for relative in (False, True)
    },
    "conformer stride=3": functools.partial(ConformerFrames, kernel=3, stride=3, **SMALL),
    "lstm": functools.partial(Recurrent, hidden=4, layers=2, cell="lstm"),
    "gru": functools.partial(Recurrent, hidden=4, layers=2, cell="gru"),
}
PLAIN = ENCODERS["transformer post none"]


def classifier(facts=FACTS, **options):
    torch.manual_seed(0)
    module = SpeakerClassifier(**({"net": PLAIN} | options))
    module.expect(facts)
    module.configure_model()
    module.log = module.log_dict = lambda *args, **kwargs: None
    module._trainer = type("T", (), {"world_size": 1, "accumulate_grad_batches": 1})()
    for parameter in module.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def stretches(lengths=(9, 9, 9, 9), junk=0.0):
    torch.manual_seed(1)
    lengths = torch.tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    x = torch.randn(*mask.shape, 5).masked_fill(~mask[..., None], junk)
    batch = {"x": x, "y": torch.randint(0, 7, (len(lengths),)), "row": torch.arange(len(lengths))}
    return batch if mask.all() else batch | {"mask": mask}


# as published


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])  # 2021 and 2022, and 2023
def test_it_computes_what_the_samples_network_does(activation):
    """With its weights, in evaluation, where nothing is padded."""
    torch.manual_seed(0)
    net = functools.partial(TransformerFrames, d_model=80)
    module = SpeakerClassifier(net=net, hidden=80, activation=activation)
    module.build({"classes": [str(n) for n in range(30)], "features": 40})
    prenet, layer = nn.Linear(40, 80), nn.TransformerEncoderLayer(d_model=80, dim_feedforward=256, nhead=2)
    last = nn.Sequential(nn.Linear(80, 80), {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[activation](), nn.Linear(80, 30))
    ours = module.nets[0]
    ours.encoder.prenet.load_state_dict(prenet.state_dict())
    ours.encoder.encoder.layers[0].load_state_dict(layer.state_dict())
    ours.last[0].load_state_dict(last[0].state_dict())
    module.heads[0].load_state_dict(last[2].state_dict())
    module.eval(), layer.eval()
    x = torch.randn(3, 20, 40)
    expected = last(layer(prenet(x).permute(1, 0, 2)).transpose(0, 1).mean(1)).log_softmax(1)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


# padding


@functools.cache
def judge(name, pooling):
    """Built once: the metrics take longer than the networks."""
    return classifier(net=ENCODERS[name], pooling=pooling, hidden=6, normalise=True, members=2).eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    junk=st.sampled_from([-20.0, 0.0, 1e3]),
)
def test_padding_changes_no_output(name, pooling, lengths, extra, junk):
    module = judge(name, pooling)
    batch = stretches((*lengths, max(lengths) + extra), junk)
    x, mask = batch["x"], batch.get("mask")
    with torch.no_grad():
        found = module(x, mask)
        for row, length in enumerate((*lengths, max(lengths) + extra)):
            torch.testing.assert_close(found[row], module(x[row : row + 1, :length])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "pooling"), [(name, list(POOLINGS)[n % 4]) for n, name in enumerate(ENCODERS)])
def test_padding_changes_no_gradient(name, pooling):
    """Also in training, where batch norm has statistics; without the dropout, whose draws differ by shape."""
    module, batch, grads = classifier(net=ENCODERS[name], pooling=pooling, normalise=True), stretches((7, 4, 9)), []
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    for extra, junk in ((0, 0.0), (3, -20.0), (6, 5.0)):
        mask = F.pad(batch["mask"], (0, extra))
        x = F.pad(batch["x"], (0, 0, 0, extra)).masked_fill(~mask[..., None], junk)
        module.zero_grad()
        module.train().training_step(batch | {"x": x, "mask": mask}, 0).backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_normalising_takes_a_channels_colour_away():
    batch, colour = stretches((9, 4)), torch.randn(5)
    coloured = batch["x"] + colour * batch["mask"].unsqueeze(2)
    for normalise in (True, False):
        module = classifier(normalise=normalise).eval()
        same = torch.allclose(module(batch["x"], batch["mask"]), module(coloured, batch["mask"]), atol=1e-5)
        assert same == normalise


def test_what_is_hidden_is_hidden_in_training_alone():
    module = classifier(augment=[SpecAugment(times=1, time_width=9, time_share=1.0, bands=1, band_width=3)])
    x = stretches()["x"]
    assert (module.train().prepared(x, None)[0] == 0).any()
    assert torch.equal(module.eval().prepared(x, None)[0], x)


# losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("members", [1, 3])
def test_loss_is_the_members_cross_entropies(smoothing, members):
    module, batch = classifier(label_smoothing=smoothing, members=members).eval(), stretches((9, 5, 7, 9))
    expected = 0.0
    for net, head in zip(module.nets, module.heads, strict=True):
        logs = (net(batch["x"], batch["mask"]) @ head.weight.T + head.bias).log_softmax(1)
        for row, y in zip(logs, batch["y"].tolist(), strict=True):
            expected += -((1 - smoothing) * row[y] + smoothing * row.mean()) / 4
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_members_learn_as_if_alone():
    both, batch = classifier(members=2).eval(), stretches()
    both.training_step(batch, 0).backward()
    for k in range(2):
        alone = classifier().eval()
        alone.nets[0].load_state_dict(both.nets[k].state_dict())
        alone.heads[0].load_state_dict(both.heads[k].state_dict())
        alone.training_step(batch, 0).backward()
        mine = [*both.nets[k].parameters(), *both.heads[k].parameters()]
        for a, b in zip(mine, [*alone.nets.parameters(), *alone.heads.parameters()], strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_members_differ_and_their_probabilities_are_averaged():
    module, batch = classifier(members=3).eval(), stretches()
    shares = [head(net(batch["x"])).softmax(1) for net, head in zip(module.nets, module.heads, strict=True)]
    assert not torch.allclose(shares[0], shares[1], atol=1e-3)
    found = module.predict_step(batch, 0)
    torch.testing.assert_close(found["prediction"], sum(shares) / 3)
    torch.testing.assert_close(module(batch["x"]).exp(), sum(shares) / 3)
    assert torch.equal(found["row"], batch["row"])


@pytest.mark.parametrize("kind", ["additive", "angular"])
def test_the_margin_is_there_in_training_alone(kind):
    head = functools.partial(MarginSoftmax, scale=10.0, margin=0.3, kind=kind)
    module, batch = classifier(head=head).eval(), stretches()
    (e,) = module.embeddings(batch["x"])
    cosines = F.normalize(e) @ F.normalize(module.heads[0].weight).T
    own = cosines[torch.arange(4), batch["y"]]
    harder = own - 0.3 if kind == "additive" else (own.acos() + 0.3).cos()
    scores = 10 * cosines.scatter(1, batch["y"][:, None], harder[:, None])
    torch.testing.assert_close(module.training_step(batch, 0), F.cross_entropy(scores, batch["y"]))
    plain = (10 * cosines).softmax(1)
    torch.testing.assert_close(module.predict_step(batch, 0)["prediction"], plain)
    for step, loss in ((module.validation_step, module.val_loss), (module.test_step, module.test_loss)):
        step(batch, 0)
        torch.testing.assert_close(loss.compute(), F.nll_loss(plain.log(), batch["y"]))


# pictures


@pytest.mark.parametrize("name", ENCODERS)
def test_attention_is_what_the_first_member_looks_at(name):
    """Rows of weights that sum to 1; from them and the values follows what the attention puts out."""
    module, x = classifier(net=ENCODERS[name], members=2, normalise=True).eval(), stretches((9,))["x"]
    found = module.attention(x)
    if name in ("lstm", "gru"):
        assert found == {}
        return
    assert list(found) == ["layer 1", "layer 2"]
    seen = []
    layer = module.nets[0].encoder.encoder.layers[-1]
    part = layer.attention if name.startswith("conformer") else layer.self_attn
    assert not part._forward_pre_hooks
    part.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        module(x)
        weights = found["layer 2"]
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3 if "stride=3" in name else 9))
        inside, out = seen[0]
        v = (inside[0] @ part.in_proj_weight[16:].T + part.in_proj_bias[16:]).view(-1, 2, 4)
        together = torch.einsum("hij,jhd->ihd", weights, v).flatten(1)
        torch.testing.assert_close(part.out_proj(together), out[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers") / "sample"
    write_speakers(folder)
    torch.manual_seed(0)
    data = SpeakerData(dir=str(folder), folds=4, segment=64, batch_size=16)
    net = functools.partial(TransformerFrames, d_model=32, heads=2, d_ff=48)
    module = SpeakerClassifier(functools.partial(torch.optim.AdamW, lr=3e-3), net, "statistics")
    trainer = Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path_factory.mktemp("run"),
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module, data


def test_it_learns(trained):
    found = trained[0].callback_metrics
    assert found["val/accuracy"] > 0.3  # chance: 1 of 16
    assert found["train/accuracy"] > 0.3
    assert found["val/equal_error_rate"] < 0.4  # chance: 0.5


def test_metrics_are_those_of_the_whole_held_out_set(trained):
    trainer, module, data = trained
    module.eval()
    logs, y = [], []
    with torch.no_grad():
        for row in data.chosen_folds()[0].val:  # one by one: nothing is padded
            logs.append(module(data.frames[row].float().unsqueeze(0))[0])
            y.append(data.targets[row])
    logs, y = torch.stack(logs).double(), torch.stack(y)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found["val/accuracy"] == pytest.approx((logs.argmax(1) == y).double().mean().item(), abs=1e-6)
    top5 = (logs.topk(5).indices == y[:, None]).any(1).double().mean().item()
    assert found["val/top5"] == pytest.approx(top5, abs=1e-6)
    assert found["val/loss"] == pytest.approx(F.nll_loss(logs, y).item(), rel=1e-4)
    (columns, rows), *_ = module.tables().values()
    assert columns == ["true", "predicted"]
    assert len(rows) == len(y)
    assert sum(a == b for a, b in rows) == (logs.argmax(1) == y).sum()


def test_pictures(trained):
    _, module, _ = trained
    training = module.training
    figures = module.draw()
    assert figures.keys() == {"attention", "embeddings", "most_confused"}
    assert module.training == training
    panels = [axes for axes in figures["attention"].axes if axes.images]
    maps = [axes for axes in panels if len({*axes.images[0].get_array().shape}) == 1]
    assert len(maps) == 2  # heads
    for axes in maps:
        weights = axes.images[0].get_array()
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
        assert axes.child_axes[0].get_ylim() == pytest.approx((0, weights.max()))
        assert [*axes.get_xlim(), *axes.get_ylim()] == pytest.approx([0, len(weights) / 100, len(weights) / 100, 0])
    assert len(figures["embeddings"].axes[0].collections[0].get_offsets()) == 48
    axes = figures["most_confused"].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    counts = torch.tensor([int(text.get_text()) for text in axes.texts]).view(len(names), len(names))
    (_, rows), *_ = module.tables().values()
    assert names[-1] == "others"
    assert counts.sum() == len(rows)
    for i, a in enumerate(names[:-1]):
        assert [sum(row == [a, b] for row in rows) for b in names[:-1]] == counts[i, :-1].tolist()
        assert sum(true == a for true, _ in rows) == counts[i].sum()
        assert sum(said == a for _, said in rows) == counts[:, i].sum()
    right = sum(true == said for true, said in rows) / len(rows)
    assert f"of 16 speakers; accuracy of all {right:.3f}" in axes.get_title()


def test_a_network_without_attention_can_be_drawn():
    module = classifier(net=ENCODERS["gru"]).eval()
    module.validation_step(stretches(), 0)
    assert module.draw().keys() == {"most_confused"}


def test_decay_reaches_no_bias_or_norm_of_attention_and_convolution():
    module = classifier()
    module.nets[0].encoder = ConformerFrames(5, 8, 2, 16, relative=True)
    _, free = split_decay(module)
    names = {id(p): n for n, p in module.named_parameters()}
    found = {names[id(p)] for p in free}
    expected = {n for n in names.values() if "bias" in n.split(".")[-1] or "norm" in n.lower()}
    expected |= {n for n in names.values() if n.endswith(("feed_forward1.0.weight", "feed_forward2.0.weight"))}
    assert found == expected
    assert any(n.endswith("in_proj_bias") for n in found)
    assert any(n.endswith("position_bias") for n in found)


def test_every_network_of_a_list_is_compiled():
    module = classifier(members=2)
    Compiled().on_fit_start(None, module)
    assert all(net._compiled_call_impl is not None for net in module.nets)
    assert all(head._compiled_call_impl is not None for head in module.heads)
