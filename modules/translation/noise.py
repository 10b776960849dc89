"""Noise on the sources of back-translated pairs (Edunov et al. 2018, arXiv 1808.09381, section 3.2).

What a beam finds is so regular that little is learned from it; noise makes it as hard to read as what people write.
"""

import re
from typing import Literal

import numpy as np

FILLER = "*"  # in the place of a word; the course's cleaning leaves it alone
SHARE = 0.1  # of the words that are dropped, and of those that the filler replaces
REACH = 3  # places that a word moves, at most
WORDS = {"en": r"\S+", "zh": r"[A-Za-z0-9]+|\S"}  # Chinese: its characters, as cleaning leaves no spaces there


def noisy(text: str, language: Literal["en", "zh"], generator: np.random.Generator) -> str:
    """Cleaned text with some words dropped, some replaced by a filler, and all moved a little.

    Returns:
        Words between spaces, also in Chinese, where cleaning takes them away again; at least one where there was one.
    """
    words = np.array(re.findall(WORDS[language], text), object)
    kept = generator.random(len(words)) >= SHARE
    kept[:1] |= not kept.any()
    words = np.where(generator.random(len(words)) < SHARE, FILLER, words)[kept]
    return " ".join(words[np.argsort(np.arange(len(words)) + generator.uniform(0, REACH + 1, len(words)))])
