"""Studies 16 and 19: what they compute, against other code and by hand; each of them run while tiny."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
import torch
from conftest import check_study

from modules.hw5_parallel import MaskedTranslator, OneShotTranslator
from modules.hw5_translation import Translator
from scripts.studies import autoregressive, reinforcement
from scripts.studies.lab import machine
from scripts.studies.lab.translation import WORDS, Size, corpus, small_language, trained

pytestmark = pytest.mark.slow

SMALL = Size(vocabulary=400, folds=4, judged=20, max_tokens=512, epochs=1, layers=1, d_model=16, heads=2, d_ff=32)
TINY = {
    "autoregressive": {"size": SMALL, "pairs": 120, "iterations": (1, 3), "timed": 2, "repeats": 1},
    "reinforcement": {"size": replace(SMALL, epochs=3), "pairs": 120, "steps": 4, "checks": 2, "samples": 2},
}


def pairs_of(data):
    """Held-out pairs, each right as the file has it."""
    batches = list(data.val_dataloader())
    right = {text: [true] for b in batches for text, true in zip(b["text"], b["reference"], strict=True)}
    return autoregressive.held_out(data, right)


@pytest.fixture(scope="module")
def masked(few_pairs):
    """A translator of masked words and its data."""
    data = corpus(SMALL, 0, few_pairs)
    return trained(SMALL, data, 0, kind=MaskedTranslator), data


# 16 autoregressive


def test_two_orders_of_a_sentence_have_the_same_words():
    sentences = small_language(300, 0)
    assert len({said.source for said in sentences}) == 300
    words = {letter: (word, kind) for kind, text in WORDS.items() for letter, word in re.findall(r"(\w) (\w)", text)}
    assert len(words) == len({word for word, _ in words.values()}) == 26
    for source, last, first in sentences:
        kinds = "".join(words[letter][1][0] for letter in source)
        assert re.fullmatch("a?nva?np?", kinds)
        subject, verb, target, place = re.fullmatch("(a?n)(v)(a?n)(p?)", kinds).regs[1:]
        who, does, what, where = (
            "".join(words[letter][0] for letter in source[slice(*span)]) for span in (subject, verb, target, place)
        )
        where = where and f"在{where}"
        assert last == who + where + does + what
        assert first == what + who + where + does


@pytest.mark.parametrize("orders", [1, 2])
def test_a_corpus_says_what_is_right_in_each_order_equally_often(tmp_path, orders):
    settings = autoregressive.Settings(pairs=200)
    right = autoregressive.told(settings, orders, 0, tmp_path)
    folder = tmp_path / "hw5_translation"
    english, chinese = ((folder / f"raw.{side}").read_text(encoding="utf-8").splitlines() for side in ("en", "zh"))
    assert english == list(right)
    places = [translations.index(line) for translations, line in zip(right.values(), chinese, strict=True)]
    assert all(len(set(translations)) == orders for translations in right.values())
    assert (70 < sum(places) < 130) == (orders == 2)


def test_every_right_translation_is_right_and_a_mixture_is_not():
    right = [["老貓在園看紅狗", "紅狗老貓在園看"]]
    for said in right[0]:
        assert autoregressive.bleu([said], right) == pytest.approx(100)
    assert autoregressive.bleu(right[0][1:], [right[0][:1]]) < 80
    assert autoregressive.bleu(["紅狗在園看紅狗"], right) < 90


def test_what_is_said_does_not_depend_on_the_others_of_a_batch(masked):
    module, data = masked
    pairs = pairs_of(data)
    assert len(pairs.sources) == len(pairs.right) == SMALL.judged
    assert [[module.text(words)] for words in pairs.words] == pairs.right
    found = autoregressive.judged(module, lambda s: autoregressive.say(s, module, 3), pairs, 4)
    said = [autoregressive.say(source[None], module, 3)[0] for source in pairs.sources]
    texts = [module.text(words) for words in said]
    assert found["example"] == texts[0]
    references = [reference for (reference,) in pairs.right]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references], tokenize="zh").score)
    twice = sum(a == b for words in said for a, b in itertools.pairwise(words))
    assert found["repeated"] == pytest.approx(twice / sum(map(len, said)))
    assert 1 < found["passes"] <= 3


def test_sources_with_several_right_translations_have_them_all(masked):
    _, data = masked
    chosen = [text for b in data.val_dataloader() for text, quick in zip(b["text"], b["quick"], strict=True) if quick]
    pairs = autoregressive.held_out(data, {text: [text, "another"] for text in chosen})
    assert pairs.right == [[text, "another"] for text in chosen]
    with pytest.raises(KeyError):
        autoregressive.held_out(data, {chosen[0]: ["one", "two"]})


def test_passes_are_those_of_the_decoder(few_pairs, masked):
    data = corpus(SMALL, 0, few_pairs)
    module = trained(SMALL, data, 0)
    sources = pairs_of(data).sources[:5]

    def word_by_word(source):
        return autoregressive.say(source, module)

    limits = [module.ends.limits([module.net], source[None], None)[0] for source in sources]
    steps = [min(len(word_by_word(source[None])[0]) + 1, limit) for source, limit in zip(sources, limits, strict=True)]
    assert autoregressive.passes(word_by_word, module, sources) == pytest.approx(np.mean(steps))
    assert autoregressive.passes(lambda s: autoregressive.say(s, masked[0]), masked[0], sources) == 1


def test_the_fastest_of_the_repeats_counts(monkeypatch):
    clock = iter([0, 5, 5, 7, 7, 8, 8, 18])  # one source: first way 5, second 2, then 1 and 10
    monkeypatch.setattr(autoregressive.time, "perf_counter", lambda: next(clock))
    assert autoregressive.seconds([len, len], [torch.zeros(3)], 2) == [1, 2]


@pytest.mark.parametrize("kind", [Translator, OneShotTranslator])
def test_a_kind_of_translator_has_its_decoder(few_pairs, kind):
    module = trained(SMALL, corpus(SMALL, 0, few_pairs), 0, kind=kind)
    assert type(module) is kind
    assert module.net.decoder.causal == (kind is Translator)


# 19 reinforcement


def test_halves_are_of_the_quick_pairs_and_together_all(few_pairs):
    data = corpus(SMALL, 0, few_pairs)
    module = trained(SMALL, data, 0)
    found = reinforcement.halves(module, data)
    losses, said = [[], []], [([], []), ([], [])]
    for batch in data.val_dataloader():
        for i, row in enumerate(batch["row"].tolist()):
            if not batch["quick"][i]:
                continue
            source, target = (
                batch[side][i : i + 1, : int((batch[side][i] != 0).sum())] for side in ("source", "target")
            )
            with torch.no_grad():
                logs = module.net(source, torch.cat([torch.tensor([[2]]), target[:, :-1]], 1)).log_softmax(2)
            losses[row % 2] += (-logs.gather(2, target[..., None])).flatten().tolist()
            said[row % 2][0].extend(module.translate(source, 1))
            said[row % 2][1].append(batch["reference"][i])
    assert sum(len(texts) for texts, _ in said) == SMALL.judged
    assert found["loss"] == pytest.approx([np.mean(half) for half in losses], rel=1e-4)
    wanted = [sacrebleu.corpus_bleu(texts, [true], tokenize="zh").score for texts, true in said]
    assert found["bleu"] == pytest.approx(wanted, abs=1e-3)


def test_checkpoints_are_judged_on_the_half_that_did_not_choose_them():
    words = {"loss": [[3.0, 3.0], [1.0, 2.0]], "bleu": [[10.0, 11.0], [12.0, 13.0]]}
    reward = {"loss": [[3.0, 3.0], [4.0, 4.0]], "bleu": [[10.0, 11.0], [20.0, 30.0]]}
    found = dict(zip(reinforcement.GOES_ON, (words, reward), strict=True))
    assert reinforcement.chosen(found) == ((30 + 20) / 2, (13 + 12) / 2)
    words["loss"][1][0] = 5.0  # then the first half takes the first look, of which the second half says 11
    assert reinforcement.chosen(found) == ((30 + 20) / 2, (11 + 12) / 2)


def test_chatty_references_say_the_same_with_particles_drawn_at_random():
    pairs = reinforcement.two_ways(reinforcement.Settings(pairs=400, chatty=0.7), 0)
    seen = dict.fromkeys(reinforcement.PARTICLES, "")
    for (source, target), said in zip(pairs, small_language(400, 0), strict=True):
        assert (source, target[1::2]) == (said.source, said.last)
        seen[target[0]] += target[2::2]
    for opens, particles in reinforcement.PARTICLES.items():
        shares = [seen[opens].count(particle) / len(seen[opens]) for particle in particles]
        assert shares == pytest.approx([1 / len(particles)] * len(particles), abs=0.04)
    assert 0.6 < sum(target[0] == "欸" for _, target in pairs) / 400 < 0.8


def test_both_ways_go_on_from_the_same_weights(tmp_path):
    settings = replace(reinforcement.STUDY.quick, **TINY["reinforcement"])
    with machine.seeded(0):
        found = reinforcement.run(settings, 0, tmp_path)
    words, reward = (found[name] for name in reinforcement.GOES_ON)
    assert words["step"] == reward["step"] == [0, 2, 4]
    for key in ("loss", "bleu"):
        assert words[key][0] == reward[key][0]
    assert words["loss"][-1] != reward["loss"][-1]
    assert np.mean(words["loss"][-1]) < np.mean(words["loss"][0]), "cross-entropy goes on learning"


# both, end to end


@pytest.mark.parametrize("name", TINY)
def test_a_study_runs_is_judged_drawn_and_told(name, few_pairs):
    found = check_study(name, TINY[name], few_pairs, timed=True)
    if name == "reinforcement":
        assert [m[way]["step"] for m in found for way in reinforcement.GOES_ON] == [[0, 2, 4]] * 4, (
            "beyond an epoch too"
        )
