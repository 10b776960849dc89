"""Noise on back-translated sources against what the paper says of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.cleaning import clean_en, clean_zh
from modules.translation.noise import FILLER, REACH, noisy


@given(st.integers(0, 40), st.integers(0, 2**20))
def test_words_are_dropped_replaced_and_moved_a_little(count, seed):
    words = [f"w{n}" for n in range(count)]
    said = noisy(" ".join(words), "en", np.random.default_rng(seed)).split()
    assert bool(said) == bool(words)
    assert len(said) <= count
    assert len({*said} - {FILLER}) == len([word for word in said if word != FILLER])  # none twice
    left = [int(word[1:]) for word in said if word != FILLER]
    assert {*left} <= {*range(count)}
    # of two words that stood more than REACH apart, fillers and what was dropped not counted, none overtakes the other
    ranks = np.argsort(np.argsort(left))
    assert all(abs(place - rank) <= REACH for place, rank in enumerate(ranks))


def test_a_tenth_is_dropped_and_a_tenth_of_the_rest_replaced():
    count, generator = 100_000, np.random.default_rng(0)
    said = noisy(" ".join(map(str, range(count))), "en", generator).split()
    assert len(said) / count == pytest.approx(0.9, abs=0.005)
    assert said.count(FILLER) / len(said) == pytest.approx(0.1, abs=0.005)
    left = np.array([int(word) for word in said if word != FILLER])
    moved = np.abs(np.argsort(np.argsort(left)) - np.arange(len(left)))
    assert moved.max() == REACH
    assert (moved > 0).mean() > 0.5


def test_chinese_words_are_characters_and_cleaning_leaves_the_noise_alone():
    generator = np.random.default_rng(1)
    text = clean_zh("我用Python寫程式，你呢？" * 20)
    said = noisy(text, "zh", generator)
    assert {*said.split()} <= {*"我用寫程式你呢,?", "Python", FILLER}
    assert clean_zh(said).replace(" ", "") == said.replace(" ", "")
    english = noisy(clean_en("It's five o'clock (now), isn't it?" * 20), "en", generator)
    assert clean_en(english) == english
