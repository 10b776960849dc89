"""Studies 13 to 15, 17, 18: what they compute, against closed forms and other code; each of them run while tiny."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
import torch
from conftest import check_study
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modules.hw4_speaker import SpeakerClassifier
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.routing import MixedRouting
from scripts.studies import attention_as_cnn, cross_attention, masked_attention, positions, scheduled_sampling
from scripts.studies.lab import machine
from scripts.studies.lab.examples import Examples
from scripts.studies.lab.fit import Curve
from scripts.studies.lab.signs import made_images
from scripts.studies.lab.translation import Size, corpus, judge_translator, next_words, read_before, trained

pytestmark = pytest.mark.slow

seeds = st.integers(0, 10**6)
SMALL = Size(vocabulary=400, folds=4, judged=20, max_tokens=512, epochs=1, d_model=16, heads=2, d_ff=32)


@pytest.fixture(scope="module")
def translator(few_pairs):
    """A translator after some epochs, its data and the losses of its steps."""
    data, curve = corpus(SMALL, 0, few_pairs), Curve()
    module = trained(replace(SMALL, epochs=8), data, 0, "mix", [curve])
    return module, data, torch.stack(curve.losses)


@pytest.fixture(scope="module")
def batch(translator):
    """Held-out source, target and its mask."""
    found = next(iter(translator[1].val_dataloader()))
    return found["source"], found["target"], found["target"] != 0


# examples in memory


@given(rows=st.integers(1, 40), steps=st.integers(1, 6), size=st.integers(1, 9), seed=seeds)
def test_all_rows_come_equally_often(rows, steps, size, seed):
    x = torch.arange(rows).float()[:, None]
    batches = [list(Examples(x, 2 * x[:, 0], steps, size, seed).train_dataloader()) for _ in range(2)]
    assert [len(batch["row"]) for batch in batches[0]] == [size] * steps
    seen = torch.cat([batch["row"] for batch in batches[0]])
    counts = torch.bincount(seen, minlength=rows)
    assert int(counts.max() - counts.min()) <= 1
    for batch, same in zip(*batches, strict=True):
        assert torch.equal(batch["x"][:, 0], batch["row"].float())
        assert torch.equal(batch["y"], 2 * batch["x"][:, 0])
        assert torch.equal(batch["row"], same["row"])


# 13 attention as CNN


@given(seed=seeds, channels=st.integers(1, 4), out=st.integers(1, 4), height=st.integers(1, 6), width=st.integers(1, 6))
@hypothesis_settings(max_examples=30)
def test_nine_heads_are_a_convolution(seed, channels, out, height, width):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(channels, height, width, generator=generator, dtype=torch.float64)
    kernel = torch.randn(out, channels, 3, 3, generator=generator, dtype=torch.float64)
    wanted = F.conv2d(image[None], kernel, padding=1)[0]
    torch.testing.assert_close(attention_as_cnn.convolved(image, kernel, 50.0), wanted, rtol=0, atol=1e-11)


def test_a_blunt_head_is_a_gaussian():
    weights = attention_as_cnn.quadratic_scores(5, 5, torch.tensor([[1.0, -1.0]]), 0.7).softmax(-1)[0, 12].view(5, 5)
    y, x = np.mgrid[:5, :5]
    wanted = np.exp(-0.7 * ((y - 3) ** 2 + (x - 1) ** 2))  # the query is (2, 2), the head looks one down, one left
    np.testing.assert_allclose(weights.numpy(), wanted / wanted.sum(), rtol=1e-5)


def test_signs_can_be_found_by_a_template():
    x, y = made_images(200, 12, torch.Generator().manual_seed(3))
    signs = (torch.rand(8, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    centred = signs - signs.mean((1, 2), keepdim=True)
    match = F.conv2d(
        x.float().mean(1, keepdim=True), centred[:, None] / centred.flatten(1).norm(dim=1)[:, None, None, None]
    )
    assert float((match.amax((2, 3)).argmax(1) == y).double().mean()) > 0.95


# 14 positions


def test_the_answer_is_in_the_order_alone():
    settings = positions.Settings(length=6, symbols=4)
    x, y = positions.sequences(settings, 200, torch.Generator().manual_seed(0))
    symbols = x.argmax(2)
    for row, answer in zip(symbols.tolist(), y.tolist(), strict=True):
        assert (row.count(0), row.count(1)) == (1, 1)
        assert answer == (row.index(1) < row.index(0))
    assert 70 < int(y.sum()) < 130


@pytest.mark.parametrize(("kind", "blind"), [("none", True), ("sinusoidal", False), ("learned", False)])
def test_only_a_net_without_positions_is_blind_to_order(kind, blind):
    torch.manual_seed(0)

    def net(features):
        return TransformerFrames(features, 8, 2, 16, positions=kind, max_length=6, dropout=0.0)

    module = SpeakerClassifier(net=net)
    module.build({"classes": ["a", "b"], "features": 4})
    (embedder,) = module.double().eval().nets
    changes = positions.moved(embedder, torch.randn(3, 6, 4).double(), torch.tensor([3, 0, 5, 1, 4, 2]))
    assert all((change < 1e-12) == blind for change in changes)


# 15 masked attention


@pytest.fixture
def guesser():
    settings = masked_attention.Settings(vocabulary=7, words=5, d_model=8, heads=2)
    torch.manual_seed(0)
    return {
        name: masked_attention.translator(settings, c).double().eval() for name, c in masked_attention.KINDS.items()
    }


@pytest.mark.parametrize("name", masked_attention.KINDS)
def test_influence_is_the_jacobian(guesser, name):
    net, source, read = guesser[name], torch.tensor([[3, 1, 2]]), torch.tensor([[0, 4, 4, 6, 1]])
    found = masked_attention.influence(net, source, read)
    embedded, memory, step = net.embed(read).detach(), net.encode(source), 1e-6
    wanted = torch.zeros(5, 5)
    with torch.no_grad():
        for j in range(5):
            columns = []
            for d in range(8):
                shift = torch.zeros_like(embedded)
                shift[0, j, d] = step
                gap = net.decode(embedded + shift, memory) - net.decode(embedded - shift, memory)
                columns.append(gap[0] / (2 * step))
            wanted[:, j] = torch.stack(columns).square().sum((0, 2)).sqrt()
    torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=1e-7)
    assert bool((found.triu(1) == 0).all()) == masked_attention.KINDS[name]


def test_a_mask_hides_what_comes_later_and_nothing_else(guesser):
    source, read = torch.tensor([[3, 1, 2]]), torch.tensor([[0, 4, 4, 6, 1]])
    masked, bare = (masked_attention.changes(guesser[name], source, read) for name in masked_attention.KINDS)
    assert (masked.triu(1) == 0).all()
    assert (masked.tril() > 0).sum() == 15
    assert (bare > 0).all()
    with torch.no_grad():
        gap = guesser["masked"](source, torch.tensor([[0, 4, 5, 6, 1]])) - guesser["masked"](source, read)
    torch.testing.assert_close(masked[:, 2], gap[0].abs().amax(1))
    assert masked_attention.apart_from_prefix(guesser["masked"], source, read) < 1e-12
    assert masked_attention.apart_from_prefix(guesser["not masked"], source, read) > 1e-3


def test_random_words_are_learned_only_where_they_are_seen():
    settings = masked_attention.Settings(vocabulary=5, words=4, d_model=16, heads=2, steps=100, rate=0.01)
    torch.manual_seed(0)
    losses = {
        name: masked_attention.guessing(settings, masked_attention.translator(settings, causal))[-20:]
        for name, causal in masked_attention.KINDS.items()
    }
    assert 0.97 < np.mean(losses["masked"]) < 1.1
    assert np.mean(losses["not masked"]) < 0.8


# 17, 18 translation


def test_a_small_translator_learns(translator):
    losses = translator[2]
    assert float(losses[-5:].mean()) < 0.75 * float(losses[:5].mean())


def test_losses_are_the_cross_entropy_of_the_next_word(translator, batch):
    module, (source, target, valid) = translator[0], batch
    read = read_before(target, module.ends.bos)
    losses, right = next_words(module, module.net.encode(source, source != 0), read, target)
    for row in range(3):
        said, length = [], int(valid[row].sum())
        alone = source[row : row + 1, : int((source[row] != 0).sum())]
        for t in range(length):
            words = torch.tensor([[2, *target[row, :t].tolist()]])
            with torch.no_grad():
                logs = module.net(alone, words)[0, -1].log_softmax(0)
            assert float(losses[row, t]) == pytest.approx(-float(logs[target[row, t]]), abs=1e-4)
            said.append(int(logs.argmax()) == int(target[row, t]))
        assert right[row, :length].tolist() == said


def test_judging_is_sacrebleu_s_and_the_mean_of_all_tokens(translator, monkeypatch):
    module, data, _ = translator
    batches = list(data.val_dataloader())
    said = [line for b in batches for line in module.translate(b["source"], 1)]
    chosen = [bool(q) for b in batches for q in b["quick"]]
    references = [line for b in batches for line in b["reference"]]
    pairs = [(s, r) for s, r, q in zip(said, references, chosen, strict=True) if q]
    assert len(pairs) == SMALL.judged < len(said)
    wanted = sacrebleu.corpus_bleu([s for s, _ in pairs], [[r for _, r in pairs]], tokenize="zh").score
    losses = []
    for b in batches:
        with torch.no_grad():
            logits = module.net(b["source"], read_before(b["target"], 2), b["source"] != 0)
        losses.append(F.cross_entropy(logits.flatten(0, 1), b["target"].flatten(), ignore_index=0, reduction="sum"))
    count = sum(int((b["target"] != 0).sum()) for b in batches)
    moved = []
    monkeypatch.setattr(
        module, "transfer_batch_to_device", lambda batch, device, _: moved.append((len(batch["row"]), device)) or batch
    )
    found = judge_translator(module, data)
    assert moved == [(len(b["row"]), module.device) for b in batches], "to where the net is"
    assert found.bleu == pytest.approx(wanted, abs=1e-3)
    assert found.loss == pytest.approx(float(sum(losses)) / count, rel=1e-4)


def test_the_mix_is_what_the_decoder_learned(few_pairs):
    found = cross_attention.run(cross_attention.Settings(SMALL, pairs=0), 0, few_pairs)
    mix = np.array(found["mix"])
    assert mix.shape == (2, 2)
    np.testing.assert_allclose(mix.sum(1), 1, rtol=1e-5)
    assert abs(mix - 0.5).max() > 1e-4
    assert set(found["loss"]) == set(cross_attention.KINDS)
    assert len({found["loss"][name] for name in cross_attention.KINDS}) == 3
    assert float(MixedRouting(2, 2).scores.softmax(1)[0, 0].detach()) == 0.5
    other = found | {"curves": {name: curve[:-1] for name, curve in found["curves"].items()}}
    assert cross_attention.figure([found, other]), "seeds may differ by a batch"


def test_steps_are_counted_until_the_mean_loss_has_fallen(monkeypatch):
    monkeypatch.setattr(cross_attention, "WINDOW", 2)
    assert cross_attention.steps_until([4.0, 0.5, 3.0, 1.0, 0.9, 0.1], 1.0) == 5
    assert cross_attention.steps_until([4.0, 3.0, 2.0], 1.0) == 3


# 18 scheduled sampling


def tiny_walks(**changes):
    return scheduled_sampling.Settings(**{"rooms": 4, "length": 6, "width": 8, "heads": 2, "steps": 3} | changes)


def test_the_best_guess_is_bayes_rule_by_enumeration():
    settings = tiny_walks(length=4, hidden=0.4)
    torch.manual_seed(0)
    told, _ = scheduled_sampling.walks(settings, 40)
    best = scheduled_sampling.best_guesses(settings, told)
    for row in range(40):
        weights = np.zeros((4, settings.rooms))  # (step, room)
        for moves in itertools.product(range(3), repeat=4):
            room, chance = 0, 1.0
            for t, move in enumerate(moves):
                seen, sign = divmod(int(told[row, t]), settings.rooms)
                room = (room + move - 1) % settings.rooms
                chance *= settings.hidden if seen == 3 else (1 - settings.hidden) * (seen == move)
                chance *= settings.signs * (sign == room) + (1 - settings.signs) / settings.rooms
                weights[t, room] += chance  # of a prefix as often as it has ends
        for t in range(4):
            assert weights[t, best[row, t]] == pytest.approx(weights[t].max())


def test_what_is_told_is_as_true_as_it_should_be():
    settings = tiny_walks(hidden=0.3, signs=0.6)
    torch.manual_seed(1)
    told, rooms = scheduled_sampling.walks(settings, 4000)
    seen, sign = told // settings.rooms, told % settings.rooms
    steps = F.pad(rooms, (1, 0)).diff(dim=1)
    known = seen < 3
    assert ((steps - (seen - 1))[known] % settings.rooms == 0).all()
    assert float((~known).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert float((sign == rooms).double().mean()) == pytest.approx(0.6 + 0.4 / 4, abs=0.01)


@pytest.mark.parametrize("kind", scheduled_sampling.SAMPLERS)
def test_going_on_step_by_step_is_decoding_what_was_said(kind):
    settings = tiny_walks()
    torch.manual_seed(0)
    net = scheduled_sampling.new_net(settings, kind).eval()
    told, rooms = scheduled_sampling.walks(settings, 5)
    given = scheduled_sampling.before(settings, rooms)[:, :3]
    said = scheduled_sampling.by_itself(net, told, given)
    with torch.no_grad():
        again = net(told, torch.cat([given, said[:, 2:-1]], 1)).argmax(2)
    assert said.shape == rooms.shape
    assert torch.equal(again, said)


def test_a_wrong_answer_costs_nothing_to_who_does_not_read(monkeypatch):
    settings = tiny_walks(wrong_at=2)
    torch.manual_seed(0)
    net = scheduled_sampling.new_net(settings, "recurrent").eval()
    held_out = scheduled_sampling.walks(settings, 50)
    assert len(scheduled_sampling.judged(settings, net, held_out)["wrong"]) == 4
    monkeypatch.setattr(net, "embed", lambda target: torch.zeros(*target.shape, settings.width))
    blind = scheduled_sampling.judged(settings, net, held_out)
    assert blind["wrong"] == blind["correct"]
    assert blind["truth"] == blind["own"]


def test_a_net_learns_to_walk():
    settings = tiny_walks(width=16, steps=150, rate=0.01, hidden=0.1)
    torch.manual_seed(0)
    found = scheduled_sampling.judged(
        settings,
        scheduled_sampling.trained(settings, "recurrent", scheduled_sampling.SCHEDULED),
        scheduled_sampling.walks(settings, 200),
    )
    assert found["own"] > 0.7
    best = scheduled_sampling.best_guesses(settings, (walks := scheduled_sampling.walks(settings, 2000)).told)
    assert float((best == walks.rooms).double().mean()) > found["own"] - 0.05


# all of them, end to end

TINY = {
    "positions": {"length": 5, "d_model": 8, "heads": 2, "examples": 40, "judged": 20, "steps": 3},
    "masked_attention": {"vocabulary": 6, "words": 4, "d_model": 8, "heads": 2, "steps": 5},
    "cross_attention": {"size": SMALL, "pairs": 120},
    "scheduled_sampling": {"rooms": 4, "length": 8, "width": 8, "heads": 2, "steps": 4, "judged": 20},
}


@pytest.mark.parametrize("name", ["cross_attention"])
def test_nets_take_their_accelerator(name, few_pairs):
    other = {"size": replace(SMALL, accelerator="abacus")}
    study = machine.load(name)
    with pytest.raises(ValueError, match="abacus"):
        study.run(replace(study.quick, **TINY[name] | other), 0, few_pairs)


@pytest.mark.parametrize("name", TINY)
def test_a_study_runs_is_judged_drawn_and_told(name, few_pairs):
    check_study(name, TINY[name], few_pairs)
