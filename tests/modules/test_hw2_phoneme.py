"""PhonemeClassifier: loss and metrics over the frames that are there, by hand; smoothing, pictures, that it learns."""

import functools
import io
import itertools

import numpy as np
import pytest
import scipy
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F

from datamodules.hw2_phoneme import PhonemeData
from modules.hw2_phoneme import PhonemeClassifier, phones, spectrum
from modules.nets.frame_encoders import ConformerFrames, TransformerFrames
from modules.nets.recurrent import Recurrent
from modules.nets.spec_augment import SpecAugment
from modules.nets.vocal_tract import DEVIATIONS, VocalTract
from modules.nets.window_mlp import WindowMLP

FEATURES, CLASSES, SILENCE = 5, 4, 2
LENGTHS = (6, 3, 5)

Small = functools.partial(Recurrent, hidden=4)
NETS = {
    "recurrent": Small,
    "transformer": functools.partial(TransformerFrames, d_model=8, d_ff=8, dropout=0.0),
    "conformer": functools.partial(ConformerFrames, d_model=8, d_ff=8, dropout=0.0, kernel=3),
}


def classifier(net=Small, window=None, classes=CLASSES, features=FEATURES, **options):
    torch.manual_seed(0)
    module = PhonemeClassifier(net=net, **options)
    table = torch.randn(classes, classes, generator=torch.Generator().manual_seed(3)).log_softmax(1)
    module.expect(
        {
            "classes": [f"c{number}" for number in range(classes)], "silence": SILENCE, "features": features,
            "window": window, "transitions": table, "held_out": "",
        }
    )  # fmt: skip
    module.configure_model()
    module.logged = {}
    module.log = lambda name, value, **kwargs: module.logged.update({name: value})
    module.log_dict = lambda values, **kwargs: module.logged.update(values)
    module._trainer = type("T", (), {"world_size": 1, "accumulate_grad_batches": 1})()
    return module


def utterances(lengths=LENGTHS, classes=CLASSES, features=FEATURES):
    """Frames (T, D) and labels (T,) of each."""
    noise = torch.Generator().manual_seed(1)
    return [(torch.randn(n, features, generator=noise), torch.randint(classes, (n,), generator=noise)) for n in lengths]


def padded(parts, extra=0, junk=0.0):
    """A batch of whole utterances; what stands in the padding is wrong on purpose."""
    count, length = len(parts), max(len(x) for x, _ in parts) + extra
    x, y = torch.full((count, length, parts[0][0].shape[1]), junk), torch.zeros(count, length, dtype=torch.int64)
    row, mask = torch.full((count, length), 10**6), torch.zeros(count, length, dtype=torch.bool)
    start = 0
    for i, (frames, labels) in enumerate(parts):
        n = len(frames)
        x[i, :n], y[i, :n], mask[i, :n], row[i, :n] = frames, labels, True, start + torch.arange(n)
        start += n
    lengths = [len(frames) for frames, _ in parts]
    places = mask.flatten().nonzero().squeeze(1)
    return {"x": x, "y": y, "mask": mask, "row": row, "places": places, "lengths": lengths}


def flat(parts, window=3):
    """The same frames as windows, one utterance after the other."""
    half = window // 2
    x = []
    for frames, _ in parts:
        wide = torch.cat([frames[:1].expand(half, -1), frames, frames[-1:].expand(half, -1)])
        x += [wide[t : t + window] for t in range(len(frames))]
    y = torch.cat([labels for _, labels in parts])
    lengths = [len(frames) for frames, _ in parts]
    return {"x": torch.stack(x), "y": y, "row": torch.arange(len(y)), "lengths": lengths}


# training


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("members", [1, 3])
def test_loss_is_the_mean_over_valid_frames_whatever_the_padding(net, smoothing, members):
    module = classifier(NETS[net], label_smoothing=smoothing, members=members).eval()
    parts = utterances()
    expected = 0.0
    for one, head in zip(module.nets, module.heads, strict=True):
        losses = []
        for frames, labels in parts:
            p = head(one(frames.unsqueeze(0)))[0].log_softmax(1)
            losses += [
                -(1 - smoothing) * row[k] - smoothing * row.mean() for row, k in zip(p, labels.tolist(), strict=True)
            ]
        expected += torch.stack(losses).mean()
    for extra, junk in [(0, 0.0), (4, 50.0)]:
        torch.testing.assert_close(module.training_step(padded(parts, extra, junk), 0), expected)
        # the curve shows one member's
        torch.testing.assert_close(module._train_sums[0], expected.detach() / members)
        module._train_sums = torch.zeros(4)


@pytest.mark.parametrize("net", NETS)
def test_a_batch_has_the_gradient_of_its_utterances_together(net):
    module, parts = classifier(NETS[net]).eval(), utterances()  # eval: batch norm sees the utterances of a batch
    parameters = list(module.parameters())
    whole = torch.autograd.grad(module.training_step(padded(parts, 2), 0), parameters)
    total = sum(len(x) for x, _ in parts)
    added = [torch.zeros_like(p) for p in parameters]
    for part in parts:
        loss = module.training_step(padded([part]), 0) * len(part[0]) / total
        for place, gradient in zip(added, torch.autograd.grad(loss, parameters), strict=True):
            place += gradient
    for a, b in zip(whole, added, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert all(g.abs().sum() > 0 for g in whole if g.ndim > 1)


def test_members_learn_as_if_alone():
    module, parts = classifier(members=2), utterances()
    grads = torch.autograd.grad(module.training_step(padded(parts), 0), list(module.parameters()))
    found = dict(zip([n for n, _ in module.named_parameters()], grads, strict=True))
    for k in range(2):
        alone = classifier()
        alone.nets[0].load_state_dict(module.nets[k].state_dict())
        alone.heads[0].load_state_dict(module.heads[k].state_dict())
        alone.training_step(padded(parts), 0).backward()
        for name, parameter in alone.named_parameters():
            kind, _, rest = name.split(".", 2)
            torch.testing.assert_close(found[f"{kind}.{k}.{rest}"], parameter.grad)
    assert not torch.equal(found["heads.0.1.weight"], found["heads.1.1.weight"])


def test_the_chain_is_trained_on_label_sequences():
    module, parts = classifier(members=2, crf=True, smoothing=0.5), utterances()
    module.transitions.zero_()  # what it began from is no longer needed
    loss, expected = module.training_step(padded(parts, 3, 7.0), 0), 0.0
    for net, head, chain in zip(module.nets, module.heads, module.chain, strict=True):
        for frames, labels in parts:
            scores = head(net(frames.unsqueeze(0)))[0]
            every = []
            for path in itertools.product(range(CLASSES), repeat=len(frames)):
                steps = [chain[a, b] for a, b in itertools.pairwise(path)]
                every.append(sum(scores[t, y] for t, y in enumerate(path)) + sum(steps))
            steps = chain[labels[:-1], labels[1:]].sum()
            expected += torch.stack(every).logsumexp(0) - scores[range(len(labels)), labels].sum() - steps
    torch.testing.assert_close(loss, expected / sum(LENGTHS))
    (grad,) = torch.autograd.grad(loss, [module.chain])
    assert grad.abs().sum((1, 2)).min() > 0
    torch.testing.assert_close(module.followers(), 0.5 * classifier().transitions)


def test_windows_train_on_plain_cross_entropy():
    module, data = classifier(functools.partial(WindowMLP, hidden=(7,)), 3), flat(utterances())
    scores = module.heads[0](module.nets[0](data["x"]))
    torch.testing.assert_close(module.training_step(data, 0), F.cross_entropy(scores, data["y"]))


def test_half_precision_frames_are_widened():
    module, data = classifier(), padded(utterances())
    half = data["x"].half()
    found = module.training_step(data | {"x": half}, 0)
    torch.testing.assert_close(found, module.training_step(data | {"x": half.float()}, 0))
    assert found.dtype == torch.float32


def test_spec_augment_hides_in_training_alone_and_each_member_differently():
    class Seen(Recurrent):
        def forward(self, x, mask=None):
            self.seen = x
            return super().forward(x, mask)

    module = classifier(functools.partial(Seen, hidden=2), members=2, augment=[SpecAugment(1, 5, 1.0, 1, 3)])
    data = padded(utterances())
    torch.manual_seed(0)
    module.training_step(data, 0)
    first, second = (net.seen for net in module.nets)
    assert ((first == data["x"]) | (first == 0)).all()
    assert not torch.equal(first, data["x"])
    assert not torch.equal(first, second)
    module.eval().validation_step(data, 0)
    assert torch.equal(module.nets[0].seen, data["x"])


# judging


@pytest.mark.parametrize("whole", [True, False])
def test_members_average_probabilities(whole):
    parts = utterances()
    if whole:
        module, data = classifier(members=3).eval(), padded(parts, 2, 9.0)
        scores = [[head(net(x.unsqueeze(0)))[0] for x, _ in parts]
                  for net, head in zip(module.nets, module.heads, strict=True)]  # fmt: skip
        expected = torch.stack([torch.cat(member).softmax(1) for member in scores]).mean(0)
    else:
        module, data = classifier(functools.partial(WindowMLP, hidden=(7,)), 3, members=3).eval(), flat(parts)
        expected = torch.stack([
            head(net(data["x"])).softmax(1) for net, head in zip(module.nets, module.heads, strict=True)
        ]).mean(0)  # fmt: skip
    found = module.predict_step(data, 0)
    torch.testing.assert_close(found["prediction"], expected)
    assert found["row"].tolist() == list(range(sum(LENGTHS)))
    module.validation_step(data, 0)
    y = torch.cat([labels for _, labels in parts])
    loss = -expected[torch.arange(len(y)), y].log().mean()
    assert module.val_loss.compute().item() == pytest.approx(loss.item(), rel=1e-5)


def edits(a, b):
    """Fewest insertions, deletions and substitutions from a to b (Wagner and Fischer 1974)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def collapsed(labels):
    return [label for label, _ in itertools.groupby(labels)]


@given(labels=st.lists(st.integers(0, 12), min_size=1, max_size=20))
def test_phones_are_runs(labels):
    assert phones(torch.tensor(labels)).split() == [str(k) for k in collapsed(labels)]


class Told(nn.Module):
    """Says the class that the first feature names."""

    out = CLASSES

    def forward(self, x, mask=None):
        return 20 * F.one_hot(x[..., 0].long().clamp(0, CLASSES - 1), CLASSES).float()


class ToldOfWindow(Told):
    def forward(self, x):
        return super().forward(x[:, x.shape[1] // 2])


def telling(window, **options):
    """A module whose answers stand in its input."""
    module = classifier(lambda width: ToldOfWindow() if window else Told(), window, **options).eval()
    for head in module.heads:
        head[1].weight.data.copy_(torch.eye(CLASSES))
        head[1].bias.data.zero_()
    return module


spoken = st.lists(
    st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=9),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=40)
@example(said=[[(0, 0)], [(SILENCE, 0)]], cut=1, window=None)  # the first batch holds no silence
@given(said=spoken, cut=st.integers(1, 4), window=st.sampled_from([None, 3]))
def test_metrics_by_hand(said, cut, window):
    """Pairs of true and predicted class; batches of `cut` utterances."""
    module = telling(window)
    parts = []
    for pairs in said:
        true, answer = torch.tensor(pairs).T
        parts.append((torch.cat([answer[:, None].float(), torch.zeros(len(pairs), FEATURES - 1)], 1), true))
    for start in range(0, len(parts), cut):
        group = parts[start : start + cut]
        module.test_step(flat(group, window) if window else padded(group, 1), 0)
    every = [pair for pairs in said for pair in pairs]
    right = [true == answer for true, answer in every]
    assert module.test_metrics["accuracy"].compute().item() == pytest.approx(sum(right) / len(right))
    heard = [true == answer for true, answer in every if true != SILENCE]
    if heard:
        found = module.test_metrics["accuracy_without_silence"].compute().item()
        assert found == pytest.approx(sum(heard) / len(heard))
    true, answers = ([collapsed([pair[k] for pair in pairs]) for pairs in said] for k in (0, 1))
    error = sum(map(edits, answers, true)) / sum(map(len, true))
    assert module.error.compute().item() == pytest.approx(error)
    matrix = module.confusion.compute()
    for a, b in itertools.product(range(CLASSES), repeat=2):
        assert matrix[a, b] == every.count((a, b))
    ((_, rows),) = module.tables().values()
    for k, (name, frames, share) in enumerate(rows):
        assert (name, frames) == (f"c{k}", sum(true == k for true, _ in every))
        assert share == pytest.approx(sum(pair == (k, k) for pair in every) / max(frames, 1))


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 999),
    window=st.booleans(),
    crf=st.booleans(),
)
def test_smoothing_answers_by_all_paths_and_reads_phones_from_the_best(lengths, seed, window, crf):
    weight, classes, crf = 1.7, 3, crf and not window
    net = functools.partial(WindowMLP, hidden=(7,)) if window else Small
    module = classifier(net, 3 if window else None, classes, smoothing=weight, members=2, crf=crf).eval()
    torch.manual_seed(seed)
    for head in module.heads:
        head[1].weight.data.normal_(0, 3)
    module.transitions.copy_(torch.randn(classes, classes))
    follows = weight * module.transitions
    if crf:
        module.chain.data.normal_()
        follows = module.chain.detach().mean(0)
    parts = [(torch.randn(n, FEATURES), torch.zeros(n, dtype=torch.int64)) for n in lengths]
    plain = classifier(net, 3 if window else None, classes, members=2).eval()
    plain.load_state_dict(module.state_dict(), strict=False)
    expected, shares = [], []
    for part in parts:
        logs = plain.predict_step(flat([part]) if window else padded([part]), 0)["prediction"].log()
        paths = list(itertools.product(range(classes), repeat=len(logs)))
        values = [
            sum(logs[t, k].item() for t, k in enumerate(path))
            + sum(follows[a, b].item() for a, b in itertools.pairwise(path))
            for path in paths
        ]
        expected += paths[max(range(len(paths)), key=values.__getitem__)]
        weights, seen = torch.tensor(values).softmax(0), torch.tensor(paths)
        shares += [[weights[seen[:, t] == k].sum() for k in range(classes)] for t in range(len(logs))]
    batch = flat(parts) if window else padded(parts, 2, 7.0)
    assert module.labels(batch).tolist() == expected
    found = module.predict_step(batch, 0)["prediction"]
    torch.testing.assert_close(found, torch.tensor(shares), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_utterance_is_heard_as_several_throats_the_surer_the_louder():
    tract, parts = VocalTract(0.1), utterances(features=39)
    module = classifier(features=39, members=2, augment=[tract], vtln=3).eval()
    expected = []
    for frames, _ in parts:
        shares, weights = [], []
        for factor in (0.9, 1.0, 1.1):
            matrix = tract.matrices(torch.tensor([factor]))[0]
            heard = torch.cat([frames[:, i : i + 13] @ matrix.T for i in (0, 13, 26)], 1)
            scores = [head(net(heard[None]))[0] for net, head in zip(module.nets, module.heads, strict=True)]
            shares.append(np.mean([scipy.special.softmax(s.numpy(), axis=1) for s in scores], axis=0))
            weights.append(-30 * scipy.stats.entropy(shares[-1], axis=1).mean())
        expected.append(np.average(shares, axis=0, weights=scipy.special.softmax(weights)))
    module._trainer.validating = False
    for extra, junk in [(0, 0.0), (4, 50.0)]:
        found = module.judge(padded(parts, extra, junk)).probabilities
        np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-4)
    plain = classifier(features=39, members=2).eval().judge(padded(parts)).probabilities
    assert not torch.allclose(found, plain, atol=1e-2)
    module._trainer.validating = True
    torch.testing.assert_close(module.judge(padded(parts)).probabilities, plain)


# what is refused


@pytest.mark.parametrize("options", [{"vtln": 5}, {"vtln": 1, "augment": [VocalTract()]}, {"vtln": -2}])
def test_throats_need_a_range(options):
    with pytest.raises(MisconfigurationException, match=r"model.vtln is -?\d: expected 0, or 2 and more .* VocalTract"):
        classifier(features=39, **options)


@pytest.mark.parametrize(
    ("net", "window", "options", "says"),
    [
        (Small, 3, {}, "data.window is 3, but model.net Recurrent needs null"),
        (WindowMLP, None, {}, "data.window is null, but model.net WindowMLP needs a number of frames"),
        (
            functools.partial(ConformerFrames, d_model=8, d_ff=8, kernel=3, stride=2),
            None,
            {},
            "model.net.stride is 2: expected 1",
        ),
        (WindowMLP, 3, {"augment": [SpecAugment()]}, "model.augment .* needs data.window null"),
        (WindowMLP, 3, {"crf": True}, "model.crf .* needs data.window null"),
    ],
)
def test_network_and_window_must_agree(net, window, options, says):
    with pytest.raises(MisconfigurationException, match=says) as caught:
        classifier(net, window, **options)
    assert "\n" not in str(caught.value)


# a real training


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phonemes") / "sample"
    PhonemeData.sample(folder)
    return folder


TRAININGS = {
    "windows": ({"net": functools.partial(WindowMLP, hidden=(64,), batch_norm=True)}, {"window": 5, "batch_size": 64}),
    "utterances": (
        {"net": functools.partial(Recurrent, hidden=16), "members": 2, "augment": [SpecAugment(1, 5, bands=1)]},
        {"window": None, "batch_size": 400},
    ),
    "chain": ({"net": functools.partial(Recurrent, hidden=16), "crf": True}, {"window": None, "batch_size": 400}),
}


@pytest.fixture(scope="module", params=TRAININGS)
def trained(request, sample, tmp_path_factory):
    torch.manual_seed(0)
    options, cut = TRAININGS[request.param]
    data = PhonemeData(dir=str(sample), **cut)
    module = PhonemeClassifier(functools.partial(torch.optim.AdamW, lr=5e-3), **options)
    trainer = Trainer(
        max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path_factory.mktemp("run"),
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module, data


def test_it_learns(trained):
    trainer, _, data = trained
    train, val = data.split()[0]
    commonest = data.targets[train].mode().values
    chance = (data.targets[val] == commonest).double().mean().item()
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found["val/accuracy"] > chance + 0.3
    assert found["train/accuracy"] > chance + 0.3


def test_metrics_are_those_of_the_whole_held_out_set(trained):
    trainer, module, data = trained
    module.eval()
    said = torch.full_like(data.targets, -1)
    with torch.no_grad():
        for batch in data.val_dataloader():
            found = module.predict_step(batch, 0)
            said[found["row"]] = found["prediction"].argmax(1)
    val = torch.from_numpy(data.split()[0].val)
    assert torch.equal(torch.nonzero(said >= 0).squeeze(1), val.sort().values)
    right = (said == data.targets)[val]
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert module.confusion.compute().sum() == len(val)


def test_pictures(trained):
    _, module, data = trained
    figures = module.draw()
    assert figures.keys() == {"confusion", "class_accuracy", "utterance"}
    assert f"{module.confusion.compute().sum()} samples" in figures["confusion"].axes[0].get_title()
    top, *tracks = figures["utterance"].axes[:3]
    assert [axes.get_ylabel() for axes in tracks] == ["true", "predicted"]
    x, true, said = module._shown
    assert len(x) == len(true) == len(said) <= 400
    # the utterance drawn is one of those held out, from its beginning, with its own labels
    starts = [data.frames.offsets[u].item() for u in data._chosen().val]
    (start,) = [s for s in starts if torch.equal(data.frames.frames[s : s + len(x)].float(), x)]
    assert torch.equal(true, data.targets[start : start + len(x)])
    for axes, labels in zip(tracks, (true, said), strict=True):
        assert len(axes.patches) == len(collapsed(labels.tolist()))
    assert top.images[0].get_array().shape == (23, len(x))
    for figure in figures.values():
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_spectrum_undoes_the_cosine_transform():
    """A spectrum of few cosines, as Kaldi's definition makes liftered MFCCs of it, normalised, comes back."""
    bands = np.arange(23)
    smooth = np.stack([np.cos(np.pi * k * (bands + 0.5) / 23) for k in (1, 4, 12)])
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra = scipy.fft.dct(smooth, norm="ortho")[:, :13] * lifter / np.array(DEVIATIONS)
    x = torch.from_numpy(np.concatenate([cepstra, np.ones((3, 26))], 1)).float()  # the deltas play no part
    torch.testing.assert_close(spectrum(x), torch.from_numpy(smooth).float(), atol=1e-5, rtol=1e-5)
