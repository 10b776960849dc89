"""Restoring: hand-written lines, and that cleaning what is restored gives back what was cleaned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.cleaning import CLEAN
from modules.translation.detokenize import RESTORE, one_line, restore_en, restore_zh

# no brackets: cleaning takes out what they hold; no colon in English: cleaning leaves spaces before it as they are
ENGLISH = st.text(st.sampled_from("aB1 2.,;!?'\"-"), max_size=25)
CHINESE = st.text(st.sampled_from("你好我a B1 2.,;:!?'\"「」。，；：！？～　"), max_size=25)


@pytest.mark.parametrize(
    "line",
    [
        "yes, it is.",
        "it's 3.5 miles, isn't it?",
        "1,000,000 people; no more!",
        "in 1990, 200 people came.",
        "it was 2.5, then 3.",
    ],
)
def test_english_comes_back(line):
    cleaned = CLEAN["en"](line)
    assert cleaned != line
    assert restore_en(cleaned) == line


@pytest.mark.parametrize(
    "line",
    [
        "你好，世界！",
        "我用python 3.5。",
        "「是嗎？」他問；我說：是。",
        "他說：「好。」，然後走了……",
        "有1,000人，比分3:2。",
        "100%，我想，3~5天。",
    ],
)
def test_chinese_comes_back(line):
    cleaned = CLEAN["zh"](line).replace("python3", "python 3")
    assert restore_zh(cleaned) == line


def test_brackets_of_a_translation():
    assert restore_en("( so it is ) .") == "(so it is)."
    assert restore_zh("他 ( 笑 ) 說 : 好 !") == "他（笑）說：好！"
    assert restore_zh("abc ( def )") == "abc (def)"


@pytest.mark.parametrize("language", ["en", "zh"])
@given(line=CHINESE | st.text(max_size=15))
def test_what_is_restored_stays(language, line):
    restored = RESTORE[language](CLEAN[language](line))
    assert RESTORE[language](restored) == restored


@given(text=st.text() | st.text(st.sampled_from("ab \n\r\t\x00\x1f\x7f\x85\x9f\u2028\u2029\v\f\x1c")))
def test_one_line_is_one_line(text):
    line = one_line(text)
    assert line.splitlines() in ([], [line])
    assert line == line.strip()
    assert "  " not in line
    kept = [c for c in text if not c.isspace() and not ("\x00" <= c <= "\x1f" or "\x7f" <= c <= "\x9f")]
    assert line.replace(" ", "") == "".join(kept)


@given(line=ENGLISH)
def test_english_is_cleaned_to_the_same(line):
    cleaned = CLEAN["en"](line)
    assert CLEAN["en"](restore_en(cleaned)) == cleaned


@given(line=CHINESE)
def test_chinese_is_cleaned_to_the_same(line):
    cleaned = CLEAN["zh"](line)
    assert CLEAN["zh"](restore_zh(cleaned)) == cleaned
