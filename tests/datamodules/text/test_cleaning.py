"""datamodules/text/cleaning.py: cleaning is the course's own, to the letter."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.cleaning import CLEAN, Language, clean_en, clean_zh, is_simplified, why_dropped

# what cleaning looks at, and what stands between
TEXT = st.text(st.sampled_from("ab Z1-—_()（）[].,;!?'\"“”~「」。，；！？：～　\t你好ａＢ１＂＿－"), max_size=30)


def published(s: str, lang: str) -> str:
    """clean_s of the course's notebook, with strQ2B in it."""
    if lang == "en":
        s = re.sub(r"\([^()]*\)", "", s)
        s = s.replace("-", "")
        s = re.sub('([.,;!?()"])', r" \1 ", s)
    else:
        half = ""
        for uchar in s:
            inside_code = ord(uchar)
            if inside_code == 12288:
                inside_code = 32
            elif 65281 <= inside_code <= 65374:
                inside_code -= 65248
            half += chr(inside_code)
        s = re.sub(r"\([^()]*\)", "", half)
        s = s.replace(" ", "")
        s = s.replace("—", "")
        s = s.replace("“", '"')
        s = s.replace("”", '"')
        s = s.replace("_", "")
        s = re.sub('([。,;!?()"~「」])', r" \1 ", s)
    return " ".join(s.strip().split())


@given(text=TEXT | st.text(max_size=20))
@pytest.mark.parametrize("language", ["en", "zh"])
def test_as_published(language: Language, text: str) -> None:
    assert CLEAN[language](text) == published(text, language)


def test_examples() -> None:
    assert clean_en('It\'s a well-known (laughter) fact: "Yes, 3.5!"') == 'It\'s a wellknown fact: " Yes , 3 . 5 ! "'
    assert clean_zh("你好，（笑聲）世界！ ＡＢＣ “是”——１２３_。") == '你好 , 世界 ! ABC " 是 " 123 。'


@given(en=TEXT.map(clean_en), zh=TEXT.map(clean_zh), times=st.sampled_from([1, 40, 600]))
def test_kept_as_published(en: str, zh: str, times: int) -> None:
    """The conditions of clean_corpus with ratio 9, max_len 1000 and min_len 1."""
    en = " ".join([en] * times)
    words, characters = len(en.split()), len(zh)
    kept = words >= 1 and characters >= 1 and max(words, characters) <= 1000
    kept = kept and words / characters <= 9 and characters / words <= 9
    assert (why_dropped(en, zh) is None) == kept


@pytest.mark.parametrize(
    ("en", "zh", "why"),
    [
        ("", "好", "empty"),
        ("good", "", "empty"),
        ("a " * 1001, "好" * 200, "long"),
        ("a " * 200, "好" * 1001, "long"),
        ("a " * 1000, "好" * 1000, None),
        ("a", "好" * 9, None),
        ("a", "好" * 10, "ratio"),
        ("a " * 9, "好", None),
        ("a " * 10, "好", "ratio"),
    ],
)
def test_why_dropped(en: str, zh: str, why: str | None) -> None:
    assert why_dropped(en, zh) == why


def test_simplified() -> None:
    assert is_simplified(["这是什么问题？"])
    assert not is_simplified(["這是什麼問題？"])
    assert not is_simplified(["你好。", "state tests"])  # of both scripts
    assert not is_simplified(["這是什麼問題？", "这"])  # a few strays


@pytest.mark.parametrize("name", ["3am", "tatoeba"])
def test_simplified_on_real_text(name: str, real_data: Callable[[str], Path]) -> None:
    """The same sentences in either script."""
    rows = gzip.decompress((real_data("hw5_translation") / f"{name}.tsv.gz").read_bytes()).decode().split("\n")[1:-1]
    lines = [row.split("\t") for row in rows]
    for part in range(0, len(lines) - 200, 1000):
        chosen = lines[part : part + 200]
        assert not is_simplified(line[2] for line in chosen)
        assert is_simplified(line[3] for line in chosen)
