"""Parallel translators: losses sentence by sentence, what is known in training, that they learn, their pictures."""

import functools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.colors import to_rgba
from scipy.stats import chisquare
from torch.nn import functional as F

from callbacks.scheduled_sampling import ScheduledSampling
from datamodules.generated import write_translation
from datamodules.hw5_translation import TranslationData
from datamodules.text.pairs import pair_batch
from modules.hw5_parallel import (
    CTCTranslator,
    LongOutputTranslator,
    MaskedTranslator,
    OneShotTranslator,
    ParallelTranslator,
    some,
)
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.pictures.drafts import COLOURS, drafts_grid
from modules.translation.ctc import collapse

PAD, EOS = 0, 3
SMALL = {"d_model": 16, "heads": 2, "d_ff": 24, "layers": 2, "dropout": 0.0, "causal": False}
NET = functools.partial(TransformerSeq2Seq, norm="pre", **SMALL)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
KINDS = {
    "masked": MaskedTranslator,
    "one shot": OneShotTranslator,
    "glancing": functools.partial(OneShotTranslator, glance=0.5),
    "long": LongOutputTranslator,
    "ctc": CTCTranslator,
    "ctc glancing": functools.partial(CTCTranslator, glance=0.5),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "sample"
    write_translation(folder)
    data = TranslationData(dir=str(folder), vocabulary=600, folds=10, max_tokens=1000, quick=60)
    data.setup("fit")
    return data


def translator(facts, kind, **options):
    torch.manual_seed(0)
    module = KINDS[kind](**({"net": NET} | options))
    module.expect(facts)
    module.configure_model()
    for parameter in module.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    module.log = module.log_dict = lambda *args, **kwargs: None
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    return module


@pytest.fixture(scope="module")
def judges(data):
    """One of each kind."""
    return {kind: translator(data.facts, kind) for kind in KINDS}


def pairs(lengths, extra=0):
    """Random pairs of (S, T) tokens, EOS among them, T one or more."""
    noise = torch.Generator().manual_seed(1)
    sides = [torch.full((len(lengths), max(side) + extra), PAD) for side in zip(*lengths, strict=True)]
    for row, counts in enumerate(lengths):
        for side, count in zip(sides, counts, strict=True):
            side[row, :count] = torch.randint(4, 600, (count,), generator=noise)
            side[row, count - 1] = EOS
    return pair_batch(*sides, torch.arange(len(lengths)))


def rows_of(batch):
    """Each source with EOS (1, S), and its target's words (T,)."""
    for source, target in zip(batch["source"], batch["target"], strict=True):
        yield source[source != PAD].unsqueeze(0), target[(target != PAD) & (target != EOS)]


def logits_of(module, vectors, source):
    """(T, V), from decoder input (T, D) and one source (1, S)."""
    return module.net.logits(module.net.decode(vectors.unsqueeze(0), module.net.encode(source)))[0]


# losses

LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=4)


def summed(module, source, words, smoothing):
    """Loss of one sentence from a start where nothing is known, and how many predictions it is made of."""
    if isinstance(module, CTCTranslator):
        states = module.upsampling.project(module.net.encode(source).outputs[-1][0])
        vectors = states.reshape(2 * source.shape[1], -1)
        logs = logits_of(module, vectors, source).log_softmax(1)
        loss = F.ctc_loss(logs, words, [len(logs)], [len(words)], PAD, "sum", zero_infinity=True)
        return loss if len(words) else 0.0, len(words)
    if isinstance(module, LongOutputTranslator):
        places = int(1.2 * source.shape[1] + 10) + 1
        logits = logits_of(module, module.unknown.vector.expand(places, -1), source)
        target = torch.cat([words, torch.tensor([EOS])])[:places]
        return F.cross_entropy(logits[: len(target)], target, label_smoothing=smoothing, reduction="sum"), len(target)
    lengths = module.predictor(module.net.encode(source))[0]
    loss = -lengths.log_softmax(0)[64 + len(words) - source.shape[1]]
    if len(words):
        logits = logits_of(module, module.unknown.vector.expand(len(words), -1), source)
        loss = loss + F.cross_entropy(logits, words, label_smoothing=smoothing, reduction="sum")
    return loss, len(words) + 1


@pytest.mark.parametrize("kind", ["masked", "one shot", "long", "ctc"])
@settings(max_examples=8)
@given(lengths=LENGTHS, extra=st.integers(0, 2), smoothing=st.sampled_from([0.0, 0.1]))
def test_losses_are_those_of_each_sentence_alone(judges, kind, lengths, extra, smoothing):
    module, batch = judges[kind].train(kind != "masked"), pairs(lengths, extra)
    losses, right = module._losses(batch, smoothing)
    expected = [summed(module, source, words, smoothing) for source, words in rows_of(batch)]
    assert len(losses) == sum(count for _, count in expected)
    torch.testing.assert_close(losses.sum(), torch.as_tensor(sum(loss for loss, _ in expected)), **CLOSE)
    assert len(right) == {"ctc": 0, "long": len(losses)}.get(kind, len(losses) - len(lengths))


def test_a_target_longer_than_the_places_is_learned_as_far_as_they_go(judges):
    batch = pairs([(1, 20), (3, 4)])
    losses, _ = judges["long"]._losses(batch, 0.0)
    assert len(losses) == 12 + 4
    expected = sum(summed(judges["long"], source, words, 0.0)[0] for source, words in rows_of(batch))
    torch.testing.assert_close(losses.sum(), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_learned_and_padding_changes_no_step(data, kind):
    """A weight without gradient would stop DDP."""
    found = []
    for extra in (0, 3):
        module = translator(data.facts, kind)
        module._known = lambda words, valid, memory, count: some(
            valid, torch.zeros_like(valid[:, 0], dtype=torch.int64)
        )
        if kind == "ctc glancing":
            module.glance = 1e-9  # both passes, nothing told: what is drawn would depend on the padding
        loss = module.training_step(pairs([(7, 2), (3, 6), (5, 5)], extra), 0)
        loss.backward()
        found.append([loss, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# what is known


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4), st.integers(0, 2**20))
def test_some_are_as_many_as_told_and_valid(rows, seed):
    torch.manual_seed(seed)
    valid = torch.arange(6) < torch.tensor([[n] for n, _ in rows])
    found = some(valid, torch.tensor([count for _, count in rows]))
    assert found.sum(1).tolist() == [min(n, count) for n, count in rows]
    assert not (found & ~valid).any()


def test_the_number_of_unknown_words_is_drawn_evenly_and_so_are_they(judges):
    torch.manual_seed(0)
    valid = torch.arange(5) < torch.tensor([[4]]).expand(4000, 1)
    unknown = valid & ~judges["masked"]._known(valid.long(), valid, None, valid.sum(1))
    counts = unknown.sum(1).bincount(minlength=5)
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 1e-3
    pairs_of = unknown[unknown.sum(1) == 2][:, :4].long() @ torch.tensor([1, 2, 4, 8])
    assert chisquare(pairs_of.bincount()[[3, 5, 6, 9, 10, 12]]).pvalue > 1e-3


def test_the_masked_loss_is_of_unknown_words_that_see_the_known_ones(judges):
    module, batch = judges["masked"].train(), pairs([(5, 7)])
    ((source, words),) = rows_of(batch)
    known = torch.tensor([True, False, True, True, False, False])
    module._known = lambda *args: known.unsqueeze(0)
    try:
        losses, right = module._losses(batch, 0.1)
    finally:
        del module._known
    vectors = module.net.embed(words.unsqueeze(0))[0].where(known.unsqueeze(1), module.unknown.vector)
    logits = logits_of(module, vectors, source)[~known]
    expected = F.cross_entropy(logits, words[~known], label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses[:-1], expected, **CLOSE)
    assert right.tolist() == (logits.argmax(1) == words[~known]).tolist()


def test_a_glance_tells_a_share_of_the_words_that_are_wrong(data):
    module, batch = translator(data.facts, "glancing"), pairs([(5, 8), (4, 6), (6, 2)])
    words, valid = module._words(batch["target"])
    memory = module._memory(batch["source"])
    nothing = torch.zeros_like(valid)
    said = module.net.logits(module._say(words, nothing, valid, memory)).argmax(2)
    words[0, :3] = said[0, :3]  # 4 of 7 are wrong
    words[2] = said[2].where(valid[2], PAD)
    assert module._known(words, valid, memory, valid.sum(1)).sum(1).tolist() == [2, 2, 0]
    module.glance = 0.0
    assert not module._known(words, valid, memory, valid.sum(1)).any()


def test_what_ctc_is_told_is_an_alignment_of_the_target(data, monkeypatch):
    module, batch = translator(data.facts, "ctc glancing", glance=1.0), pairs([(6, 7), (4, 3)])
    read, states, decode = [], [], TransformerSeq2Seq.decode

    def decode_and_see(net, embedded, memory, mask=None):
        read.append(embedded)
        states.append(decode(net, embedded, memory, mask))
        return states[-1]

    monkeypatch.setattr(TransformerSeq2Seq, "decode", decode_and_see)
    module._losses(batch, 0.0)
    first, second = read
    guessed = module.net.logits(states[0]).argmax(2)
    for row, (source, words) in enumerate(rows_of(batch)):
        places = 2 * source.shape[1]
        vectors = module.net.embed(torch.arange(600).unsqueeze(0))[0]
        distance = (second[row, :places].unsqueeze(1) - vectors).square().sum(2)
        told = (first[row, :places] != second[row, :places]).any(1)
        assert told.sum() >= places - 2  # random weights are right by chance
        assert distance.min(1).values[told].max() < 1e-3
        path = distance.argmin(1).where(told, guessed[row, :places])
        assert collapse(path.tolist(), PAD) == words.tolist()


def test_ctc_is_not_judged_on_what_has_too_few_places(data):
    module, both = translator(data.facts, "ctc"), pairs([(6, 7), (2, 9)])
    one = pair_batch(both["source"][:1], both["target"][:1], torch.arange(1))
    module.eval()
    losses = module._losses(both, 0.0)[0]
    assert len(losses) == (one["target"] != PAD).sum() - 1 < (both["target"] != PAD).sum() - 2
    torch.testing.assert_close(losses, module._losses(one, 0.0)[0], atol=1e-4, rtol=1e-4)


def test_there_are_no_more_lengths_than_the_predictor_knows(data):
    module = translator(data.facts, "masked")
    module.eval()
    assert len(module.translate(pairs([(6, 7)])["source"], 1000)) == 1


# what cannot be


def test_networks_that_go_word_by_word_are_refused(data):
    for net in (functools.partial(TransformerSeq2Seq, **(SMALL | {"causal": True})), RecurrentSeq2Seq):
        with pytest.raises(MisconfigurationException, match=r"model\.net is a .* causal: false"):
            MaskedTranslator(net=net).build(data.facts)
    assert not MaskedTranslator().new_net(50).decoder.causal


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MaskedTranslator, {"iterations": 0}),
        (MaskedTranslator, {"candidates": 0}),
        (OneShotTranslator, {"glance": 1.5}),
        (CTCTranslator, {"glance": -0.5}),
        (CTCTranslator, {"upsampling": 0}),
    ],
)
def test_wrong_options(kind, options):
    ((name, value),) = options.items()
    with pytest.raises(MisconfigurationException, match=rf"{name}.* {value}.*: expected"):
        kind(**options)


def test_the_class_that_they_share_is_no_translator():
    with pytest.raises(TypeError, match="abstract"):
        ParallelTranslator()


def test_scheduled_sampling_is_refused(judges):
    """There is no word before that it could read."""
    with pytest.raises(MisconfigurationException, match="MaskedTranslator has no `teacher_forcing`"):
        ScheduledSampling("constant").on_train_start(None, judges["masked"])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_learns_has_a_gradient(data, kind, share):
    """DDP stops where one is missing."""
    module = translator(data.facts, kind, net=functools.partial(NET, share=share)).train()
    losses, _ = module._losses(pairs([(6, 7), (4, 3)]), 0.1)
    losses.mean().backward()
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(not p.requires_grad for p in module.parameters()) == (kind == "ctc" and not share)


# pictures


@pytest.mark.parametrize("kind", ["masked", "one shot", "long", "ctc"])
def test_what_is_drawn(judges, kind):
    module = judges[kind].eval()
    module.on_validation_epoch_start()
    assert module.draw() == {}
    texts = ["a", "b", "c"]
    judged = {"quick": torch.tensor([True, False, True]), "text": texts, "reference": texts, "raw_reference": texts}
    module.validation_step(pairs([(5, 3), (9, 4), (7, 2)]) | judged, 0)
    figures = module.train().draw()
    assert module.training
    expected = {"attention", "bleu_by_length", "position_similarity"} | ({"iterations"} if kind == "masked" else set())
    assert figures.keys() == expected
    maps = [axes.images[0].get_array() for axes in figures["attention"].axes if axes.images]
    assert len(maps) == 2 * 2
    assert {image.shape[1] for image in maps} == {9}
    if kind in ("long", "ctc"):
        assert {image.shape[0] for image in maps} == {int(1.2 * 9 + 10) + 1 if kind == "long" else 2 * 9}


def test_the_grid_of_drafts_shows_what_was_said_anew():
    figure = drafts_grid([["▁a", "中", "$"], ["▁a", "b", "$"]], [[True] * 3, [False, True, True]], "源")
    (axes,) = figure.axes
    kinds = [[COLOURS[kind] for kind in line] for line in (["new"] * 3, ["kept", "new", "same"])]
    assert [bar.get_facecolor() for bar in axes.patches] == [
        to_rgba(kinds[line][t]) for t in range(3) for line in (0, 1)
    ]
    assert len(axes.texts) == 6
    assert axes.texts[0].get_text() == "_a"
    figure.canvas.draw()


# all together


def reversals(count, noise):
    """Sources of 3 to 6 of 12 words and EOS; targets are the words from last to first, each another one."""
    lengths = torch.randint(3, 7, (count,), generator=noise)
    batch = {"source": torch.full((count, 7), PAD), "target": torch.full((count, 7), PAD)}
    for row, n in enumerate(lengths.tolist()):
        words = torch.randint(4, 16, (n,), generator=noise)
        batch["source"][row, : n + 1] = torch.cat([words, torch.tensor([EOS])])
        batch["target"][row, : n + 1] = torch.cat([words.flip(0) + 12, torch.tensor([EOS])])
    return pair_batch(batch["source"], batch["target"], torch.arange(count))


STEPS = {"masked": 200, "long": 110, "ctc": 100}


@pytest.mark.parametrize("kind", STEPS)
def test_it_learns_to_turn_sentences_round(data, kind):
    net = functools.partial(
        TransformerSeq2Seq, d_model=32, heads=2, d_ff=64, layers=1, norm="pre", dropout=0.0, causal=False
    )
    module, noise = translator(data.facts | {"vocabulary": 28}, kind, net=net), torch.Generator().manual_seed(0)
    module.text = lambda tokens: " ".join(map(str, tokens))
    test = reversals(100, noise)
    expected = [module.text(words.tolist()) for _, words in rows_of(test)]

    def right():
        module.eval()
        return sum(a == b for a, b in zip(module.translate(test["source"]), expected, strict=True))

    assert right() == 0
    optimizer = torch.optim.Adam(module.train().parameters(), lr=1e-2)
    for _ in range(STEPS[kind]):
        optimizer.zero_grad()
        module.training_step(reversals(64, noise), 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    assert right() > 20
