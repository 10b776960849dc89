"""A translator trained on a reward: mixed with cross-entropy as told, judged on the text that validation judges."""

import functools
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from torch import nn

from datamodules.generated import write_translation
from datamodules.hw5_translation import TranslationData
from modules.hw5_translation import Translator
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.objectives import MinimumRisk, PolicyGradient

KINDS = {
    "transformer": functools.partial(TransformerSeq2Seq, d_model=16, heads=2, d_ff=24, layers=1, dropout=0.1),
    "gru": functools.partial(RecurrentSeq2Seq, width=12, hidden=8, dropout=0.1),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "sample"
    write_translation(folder)
    data = TranslationData(dir=str(folder), vocabulary=600, folds=10, max_tokens=128, max_length=64, quick=60)
    data.setup("fit")
    return data


def translator(facts, objective=None, kind="transformer"):
    """As if in a trainer, at a step that logs; what it logs is in `logged`."""
    torch.manual_seed(0)
    module = Translator(net=KINDS[kind], objective=objective)
    module.expect(facts)
    module.configure_model()
    module.logged = {}
    module.log_dict = lambda values, **options: module.logged.update(values)
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1, global_step=4, log_every_n_steps=5)
    return module


def gradient(module, batch):
    torch.manual_seed(7)
    loss = module.training_step(batch, 0)
    found = torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True)
    return loss.detach(), nn.utils.parameters_to_vector(found)


def test_the_target_decodes_to_the_reference_that_validation_takes(data):
    module = translator(data.facts)
    batches = list(data.val_dataloader())
    assert sum(len(batch["row"]) for batch in batches) > 100
    for batch in batches:
        assert module.pieces.decode(batch["target"].tolist()) == batch["reference"]


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_weight_of_1_it_is_cross_entropy_to_the_last_bit(data, kind):
    batch = next(iter(data.train_dataloader()))
    expected = gradient(translator(data.facts, kind=kind), batch)
    for objective in (PolicyGradient(weight=1.0), MinimumRisk(weight=1.0)):
        found = gradient(translator(data.facts, objective, kind), batch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        other = gradient(translator(data.facts, type(objective)(weight=0.9), kind), batch)
        assert not torch.equal(other[1], expected[1])


@pytest.mark.parametrize("make", [PolicyGradient, functools.partial(MinimumRisk, alpha=0.5)])
def test_the_weight_mixes_sums_over_the_sentences_tokens(data, make):
    batch = next(iter(data.train_dataloader()))
    ends = [gradient(translator(data.facts, make(weight=weight)), batch) for weight in (0.0, 1.0)]
    found = gradient(translator(data.facts, make(weight=0.3)), batch)
    for mixed, reward, words in zip(found, *ends, strict=True):
        torch.testing.assert_close(mixed, 0.7 * reward + 0.3 * words, atol=1e-6, rtol=1e-4)
    module = translator(data.facts, objective := make())
    seen = {}
    whole, objective.losses = objective.losses, lambda *args: seen.setdefault("losses", whole(*args))
    total = gradient(translator(data.facts, make(weight=0.0)), batch)[0]
    gradient(module, batch)
    assert seen["losses"][0].shape == (len(batch["row"]),)
    torch.testing.assert_close(total, seen["losses"][0].detach().sum() / (batch["target"] != 0).sum())


@pytest.mark.parametrize("reward", ["bleu", "chrf"])
def test_what_is_logged_is_of_the_text(data, reward):
    """The samples are found again by the same noise; their scores are sacrebleu's."""
    batch = next(iter(data.train_dataloader()))
    objective = PolicyGradient(samples=2, weight=0.0, reward=reward)
    module, found = translator(data.facts, objective), []
    whole = objective.losses
    objective.losses = lambda tokens, *args: (found.append(tokens), whole(tokens, *args))[1]
    gradient(module, batch)
    pad = data.facts["pad"]
    pairs = [
        (module.text([t for t in words if t != pad]), module.text([t for t in target if t != pad]))
        for group, target in zip(found[0].tolist(), batch["target"].tolist(), strict=True)
        for words in group
    ]
    scores = {
        "bleu": [sacrebleu.sentence_bleu(said, [reference], tokenize="zh").score / 100 for said, reference in pairs],
        "chrf": [sacrebleu.sentence_chrf(said, [reference]).score / 100 for said, reference in pairs],
    }
    logged = {name: float(value) for name, value in module.logged.items()}
    other = {"bleu": "chrf", "chrf": "bleu"}[reward]
    assert logged["train/reward"] == pytest.approx(sum(scores[reward]) / len(pairs), rel=1e-5)
    assert logged[f"train/{other}"] == pytest.approx(sum(scores[other]) / len(pairs), rel=1e-5)
    tokens = (found[0] != pad).sum() / 2 / (batch["target"] != pad).sum()
    assert logged["train/length_ratio"] == pytest.approx(float(tokens), rel=1e-5)
    names = {"reward_variance", "advantage_variance", "entropy", "greedy_reward"}
    assert logged.keys() == {f"train/{name}" for name in names | {"reward", other, "length_ratio"}}
    assert 4 < logged["train/entropy"] < 8  # about ln 600 at random weights


def test_nothing_is_logged_between_the_steps_that_log(data):
    module = translator(data.facts, PolicyGradient(samples=2))
    module._trainer.global_step = 3
    gradient(module, next(iter(data.train_dataloader())))
    assert module.logged == {}
