"""Translator: loss by hand, padding, accumulation, scheduled sampling, sacrebleu's BLEU, learning, pictures."""

import functools
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from callbacks.scheduled_sampling import ScheduledSampling
from datamodules.generated import write_translation
from datamodules.hw5_translation import TranslationData
from datamodules.text.cleaning import clean_zh
from datamodules.text.pairs import pair_batch
from modules.hw5_translation import LONGEST, Translator
from modules.nets.attention import MultiHeadAttention
from modules.nets.positions import NoPositions
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.translation.detokenize import restore_zh
from modules.translation.search import beam_search

PAD, BOS, EOS = 0, 2, 3
SMALL = {"d_model": 16, "heads": 2, "d_ff": 24, "layers": 2, "decoder_layers": 3, "dropout": 0.0}
KINDS = {
    "post-norm": functools.partial(TransformerSeq2Seq, routing="mix", **SMALL),
    "pre-norm": functools.partial(TransformerSeq2Seq, norm="pre", positions="learned", share=False, **SMALL),
    "gru": functools.partial(RecurrentSeq2Seq, width=12, hidden=8, dropout=0.0),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TESTED = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "sample"
    write_translation(folder)
    for side, laughter in (("en", " (Laughter)"), ("zh", "（笑聲）")):  # which cleaning takes out
        path = folder / f"test.{side}"
        lines = path.read_text("utf-8").splitlines()[:TESTED]
        path.write_text("".join(f"{line}{laughter * (n % 3 == 0)}\n" for n, line in enumerate(lines)), "utf-8")
    data = TranslationData(dir=str(folder), vocabulary=600, folds=10, max_tokens=1000, quick=30)
    data.setup("fit")
    return data


def translator(facts, kind="post-norm", **options):
    torch.manual_seed(0)
    module = Translator(**({"net": KINDS[kind]} | options))
    module.expect(facts)
    module.configure_model()
    for parameter in module.parameters():  # gains of 1 and biases of 0 would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def alone(module, counted_elsewhere=None):
    """The module as if in a trainer; with a second rank that counts so many tokens."""
    module.log = module.log_dict = lambda *args, **kwargs: None
    strategy = SimpleNamespace(reduce=lambda count, reduce_op: count + counted_elsewhere)
    world = 1 if counted_elsewhere is None else 2
    module._trainer = SimpleNamespace(world_size=world, accumulate_grad_batches=1, strategy=strategy)
    return module


def pairs(lengths, extra=0, seed=1):
    """Random pairs of (S, T) tokens, EOS among them."""
    noise = torch.Generator().manual_seed(seed)
    sides = [torch.full((len(lengths), max(side) + extra), PAD) for side in zip(*lengths, strict=True)]
    for row, counts in enumerate(lengths):
        for side, count in zip(sides, counts, strict=True):
            side[row, :count] = torch.randint(4, 600, (count,), generator=noise)
            side[row, count - 1] = EOS
    return pair_batch(*sides, torch.arange(len(lengths)))


def rows_of(batch):
    """Each pair without padding, (S,) and (T,)."""
    for source, target in zip(batch["source"], batch["target"], strict=True):
        yield source[source != PAD], target[target != PAD]


def summed_loss(module, batch, smoothing):
    """Sentence by sentence, by torch's own."""
    total = 0.0
    for source, target in rows_of(batch):
        before = torch.cat([torch.tensor([BOS]), target[:-1]])
        logits = module.net(source.unsqueeze(0), before.unsqueeze(0))[0]
        total += F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    return total


# loss

LENGTHS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def judges(data):
    """A translator of each kind."""
    return {kind: translator(data.facts, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(lengths=LENGTHS, smoothing=st.sampled_from([0.0, 0.1]), elsewhere=st.sampled_from([None, 0, 11]))
def test_loss_is_the_cross_entropy_of_all_valid_tokens_by_their_global_count(
    judges, kind, lengths, smoothing, elsewhere
):
    module, batch = alone(judges[kind], elsewhere), pairs(lengths)
    module.label_smoothing = smoothing
    count = sum(t for _, t in lengths)
    mean = summed_loss(module, batch, smoothing) / (count + (elsewhere or 0))
    world = 1 if elsewhere is None else 2  # DDP takes the mean of the ranks' gradients
    torch.testing.assert_close(module.training_step(batch, 0), world * mean, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_no_loss_and_no_gradient(data, kind):
    module, found = alone(translator(data.facts, kind)), []
    for extra in (0, 3):
        module.zero_grad()
        loss = module.training_step(pairs([(7, 2), (3, 9), (5, 5)], extra), 0)
        loss.backward()
        found.append([loss, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def fit(module, batches, *callbacks, **options):
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=list(callbacks), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


UNEQUAL = [[(3, 2)], [(5, 9), (2, 8), (4, 7)], [(6, 1), (1, 3)], [(2, 2), (9, 9)], [(4, 5)]]


def test_accumulated_batches_make_the_same_steps_as_large_ones(data):
    """Four batches with unequal counts of tokens, then the one that is left at the end of the epoch."""
    small = [pairs(rows, seed=seed) for seed, rows in enumerate(UNEQUAL)]
    large = pairs([pair for rows in UNEQUAL[:4] for pair in rows])
    for place, (source, target) in enumerate(row for batch in small[:4] for row in rows_of(batch)):
        large["source"][place, : len(source)], large["target"][place, : len(target)] = source, target
    weights = []
    for batches, parts in ((small, 4), ([large, small[4]], 1)):
        module = translator(data.facts, optimizer=functools.partial(torch.optim.SGD, lr=0.5))
        trainer = fit(module, batches, accumulate_grad_batches=parts)
        assert trainer.global_step == 2
        weights.append(list(module.parameters()))
    start = list(translator(data.facts).parameters())
    for a, b, before in zip(*weights, start, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
        assert not torch.equal(a, before)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_logged_loss_is_the_mean_of_the_batches_own(data, parts):
    module = translator(data.facts, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    batches = [pairs(rows, seed=seed) for seed, rows in enumerate(UNEQUAL)]
    found = fit(module, batches, accumulate_grad_batches=parts).callback_metrics["train/loss"]
    with torch.no_grad():
        own = [summed_loss(module, b, 0.1) / sum(t for _, t in rows) for b, rows in zip(batches, UNEQUAL, strict=True)]
    assert float(found) == pytest.approx(float(sum(own)) / 5, rel=1e-4)


def test_the_gradients_norm_is_logged_before_it_is_clipped(data):
    module, batch = (
        translator(data.facts, optimizer=functools.partial(torch.optim.SGD, lr=0.1)),
        pairs([(5, 4), (2, 7)]),
    )
    alone(twin := translator(data.facts)).training_step(batch, 0).backward()
    expected = sum(float(p.grad.square().sum()) for p in twin.parameters()) ** 0.5
    found = fit(module, [batch], gradient_clip_val=0.01, log_every_n_steps=1).callback_metrics["gradient_norm"]
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1
    moved = nn.utils.parameters_to_vector(module.parameters()) - nn.utils.parameters_to_vector(twin.parameters())
    assert float(moved.detach().norm()) == pytest.approx(0.1 * 0.01, rel=1e-2)


# scheduled sampling


@pytest.mark.parametrize("kind", ["post-norm", "gru"])
def test_the_truth_alone_gives_the_same_bits_as_no_sampling(data, kind):
    batches, weights = [pairs([(4, 6), (3, 5)], seed=seed) for seed in range(3)], {}
    for sampling, floor in (("passes", None), ("passes", 1.0), ("steps", 1.0), ("passes", 0.5), ("steps", 0.5)):
        module = translator(data.facts, kind, sampling=sampling)
        fit(module, batches, *([] if floor is None else [ScheduledSampling("constant", floor=floor)]))
        weights[sampling, floor] = nn.utils.parameters_to_vector(module.parameters())
        assert module.teacher_forcing == 1
    for sampling in ("passes", "steps"):
        assert torch.equal(weights[sampling, 1.0], weights["passes", None])
        assert not torch.allclose(weights[sampling, 0.5], weights["passes", None], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "sampling", "own_words"),
    [
        ("post-norm", "steps", "argmax"),
        ("post-norm", "passes", "mixed"),
        ("pre-norm", "passes", "sampled"),
        ("gru", "steps", "mixed"),
        ("gru", "passes", "argmax"),
    ],
)
def test_it_trains_on_its_own_words(data, kind, sampling, own_words):
    module = alone(translator(data.facts, kind, sampling=sampling, own_words=own_words, passes=3))
    batch = pairs([(4, 5), (3, 4), (6, 2)])
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=0.03), []
    module.teacher_forcing = 0.5
    for _ in range(10):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_judging_reads_the_truth(data):
    module, batch = alone(translator(data.facts)).eval(), pairs([(4, 5), (3, 4)])
    module.teacher_forcing = 0.0
    torch.testing.assert_close(module.training_step(batch, 0), summed_loss(module, batch, 0.1) / 9, **CLOSE)
    assert not torch.allclose(module.train().training_step(batch, 0), summed_loss(module, batch, 0.1) / 9, atol=1e-3)


# what cannot be


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_smoothing": 1.0}, "model.label_smoothing is 1.0"),
        ({"beam": 0}, "model.beam is 0"),
        ({"passes": 1}, "passes 1"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(MisconfigurationException, match=says):
        Translator(**options)


def test_sentences_longer_than_the_table_of_positions_are_refused(data):
    net = functools.partial(TransformerSeq2Seq, positions="learned", **SMALL)
    for limit in (data.max_length - 1, data.max_length):
        module = Translator(net=functools.partial(net, max_length=limit))
        module.expect(data.facts)
        if limit < data.max_length:
            with pytest.raises(
                MisconfigurationException, match=r"max_length is 255, .* has 256 tokens; raise it, or lo"
            ):
                module.configure_model()
        else:
            module.configure_model()


# pictures


def cross_attentions(net):
    """The layers that look at the source, by name."""
    return [part for name, part in net.named_modules() if name.endswith("multihead_attn") or name == "attention"]


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_what_the_decoder_looks_at(data, kind):
    """As torch.nn.MultiheadAttention has it with the same weights, or by hand for the GRU."""
    module = translator(data.facts, kind).eval()
    batch = pairs([(7, 5)])
    (source, target), seen = (batch["source"][0], batch["target"][0]), []
    found = module.attention(source, target)
    parts = cross_attentions(module.net)
    assert list(found) == [f"layer {n}" for n in range(1, len(parts) + 1)]
    assert len(parts) == (1 if kind == "gru" else 3)
    assert not any(part._forward_pre_hooks for part in parts), "left behind"
    for part in parts:
        part.register_forward_pre_hook(lambda part, args: seen.append(args[:2]))
    with torch.no_grad():
        module.net(source.unsqueeze(0), torch.cat([torch.tensor([BOS]), target[:-1]]).unsqueeze(0))
        for weights, part, (asking, memory) in zip(found.values(), parts, seen, strict=True):
            assert weights.shape == (1 if kind == "gru" else 2, 5, 7)
            torch.testing.assert_close(weights.sum(2), torch.ones(weights.shape[:2]))
            if isinstance(part, MultiHeadAttention):
                judge = nn.MultiheadAttention(16, 2, batch_first=True)
                judge.load_state_dict(part.state_dict())
                expected = judge(asking, memory, memory, average_attn_weights=False)[1][0]
            else:
                expected = (part.input_proj(asking) @ memory.transpose(1, 2)).softmax(2)
            torch.testing.assert_close(weights, expected, **CLOSE)
    assert max(float(weights.std(2).max()) for weights in found.values()) > 1e-3, "all alike"


def judged(lengths):
    """A batch of validation."""
    texts = [f"text {row}" for row in range(len(lengths))]
    quick = torch.arange(len(lengths)) % 2 == 0
    return pairs(lengths) | {"quick": quick, "text": texts, "reference": texts, "raw_reference": texts}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_fits_the_network(data, kind):
    module = alone(translator(data.facts, kind)).eval()
    assert module.draw() == {}
    assert module.samples()[1] == []
    module.on_validation_epoch_start()
    module.validation_step(judged([(LONGEST + 1, 3), (6, 4), (9, 2)]), 0)
    module.train()
    figures = module.draw()
    assert module.training
    assert figures.keys() == {"attention", "bleu_by_length"} | ({"position_similarity"} if kind != "gru" else set())
    maps = [axes.images[0].get_array() for axes in figures["attention"].axes if axes.images]
    assert len(maps) == (1 if kind == "gru" else 3 * 2)
    assert {image.shape[1] for image in maps} == {9}  # the longest of those with at most LONGEST pieces
    columns, rows = module.samples()
    assert columns == ["source", "reference", "output"]
    assert [row[:2] for row in rows] == [["text 0", "text 0"], ["text 2", "text 2"]]
    if kind != "gru":
        module.net.positions = NoPositions()
        assert "position_similarity" not in module.draw(), "a net without positions"


# all together


class Scores(Callback):
    """BLEU of every validation."""

    def __init__(self):
        self.bleu = []

    def on_validation_end(self, trainer, pl_module):
        self.bleu.append(float(trainer.callback_metrics["val/bleu"]))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    torch.manual_seed(0)
    net = functools.partial(TransformerSeq2Seq, d_model=64, heads=2, d_ff=128, layers=1, norm="pre")
    module = Translator(functools.partial(torch.optim.AdamW, lr=5e-3), net)
    scores = Scores()
    trainer = Trainer(
        max_epochs=3, check_val_every_n_epoch=3, accelerator="cpu", logger=False, callbacks=[scores],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=-1, gradient_clip_val=1.0,
        default_root_dir=tmp_path_factory.mktemp("run"),
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module.eval(), scores.bleu


def test_it_learns(trained):
    trainer, _, (before, after) = trained
    assert before < 1
    assert after > 25
    assert trainer.callback_metrics["train/accuracy"] > 0.4


def greedily(module, source):
    """Translation of a sentence (S,), token by token, everything again each time."""
    words = [BOS]
    while len(words) <= int(1.2 * len(source) + 10):
        logits = module.net(source.unsqueeze(0), torch.tensor([words]))[0, -1]
        logits[[PAD, BOS]] = -torch.inf
        if (word := int(logits.argmax())) == EOS:
            break
        words.append(word)
    return module.text(words[1:])


@torch.no_grad()
def test_validation_is_of_the_quick_pairs_and_all_losses(trained, data):
    trainer, module, (_, bleu) = trained
    chinese = (data.locate() / "raw.zh").read_text("utf-8").splitlines()
    said, references, total, count = {}, {}, 0.0, 0
    for batch in data.val_dataloader():
        target = batch["target"]
        before = F.pad(target[:, :-1], (1, 0), value=BOS)
        logits = module.net(batch["source"], before, batch["source"] != PAD)
        total += float(F.cross_entropy(logits.mT, target, ignore_index=PAD, reduction="sum"))
        count += int((target != PAD).sum())
        for (source, _), row, quick in zip(rows_of(batch), batch["row"].tolist(), batch["quick"].tolist(), strict=True):
            if quick:
                said[row], references[row] = greedily(module, source), clean_zh(chinese[row])
    assert len(said) == 30
    found = trainer.callback_metrics
    assert float(found["val/loss"]) == pytest.approx(total / count, rel=1e-4)
    expected = sacrebleu.corpus_bleu(list(said.values()), [list(references.values())], tokenize="zh").score
    assert bleu == pytest.approx(expected, abs=1e-3)
    _, rows = module.samples()
    assert len(rows) == 20
    assert all([reference, output] in [[references[r], said[r]] for r in said] for _, reference, output in rows)


@pytest.fixture(scope="module")
def translated(trained, data):
    """Scores of the test set, and row -> translation."""
    trainer, module, _ = trained
    (scores,) = trainer.test(module, data, verbose=False)
    batches = trainer.predict(module, data)
    rows = torch.cat([batch["row"] for batch in batches]).tolist()
    texts = [text for batch in batches for text in batch["text"]]
    return scores, dict(zip(rows, texts, strict=True))


def test_every_test_sentence_is_translated_with_the_beam(trained, data, translated):
    _, module, _ = trained
    _, texts = translated
    assert sorted(texts) == list(range(TESTED))
    for row in range(0, TESTED, 7):
        source = torch.tensor([[*data.test_corpus.ids(row, 0), EOS]])
        ((best, *_),) = beam_search([module.net], source, None, module.ends, 5)
        assert texts[row] == data.tokenizer.decode([best.tokens])[0]


def test_test_scores_are_sacrebleus(data, translated):
    scores, texts = translated
    said = [texts[row] for row in range(TESTED)]
    raw = (data.locate() / "test.zh").read_text("utf-8").splitlines()
    clean = [clean_zh(line) for line in raw]
    expected = {
        "test/bleu": sacrebleu.corpus_bleu(said, [clean], tokenize="zh").score,
        "test/chrf": sacrebleu.corpus_chrf(said, [clean]).score,
        "test/bleu_raw": sacrebleu.corpus_bleu([restore_zh(text) for text in said], [raw], tokenize="zh").score,
    }
    assert expected["test/bleu"] > 20
    assert expected["test/bleu_raw"] < expected["test/bleu"] - 1
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-3)


def test_an_ensemble_translates_together(trained, data):
    _, module, _ = trained
    batch = next(iter(data.val_dataloader()))
    source = batch["source"][:12]
    said = module.translate(source)
    other = translator(data.facts).eval().net
    nn.init.normal_(other.output_table.weight)  # sure of itself
    try:
        module.others = [module.net]
        assert module.translate(source) == said
        module.others = [other]
        together = module.translate(source)
    finally:
        module.others = []
    found = beam_search([module.net, other], source, source != PAD, module.ends, 5)
    assert together == [module.text(best.tokens) for best, *_ in found]
    assert together != said
