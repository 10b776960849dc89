"""Sentences of HW5 as the course cleans them. Pure functions.

Source: `clean_s` and `clean_corpus` of the course's notebooks, 2021 to 2023. Cleaned Chinese has half-width punctuation
with spaces around it; modules/translation/detokenize.py leads back to what people write.
"""

import re
from collections.abc import Callable, Iterable
from typing import Literal

Language = Literal["en", "zh"]

RATIO, MAX_LENGTH, MIN_LENGTH = 9, 1000, 1  # of the published clean_corpus
VERSION = 1  # of the cleaning; another number cleans again what lies in the cache

# full-width space and ASCII to half width
_HALF = {0x3000: " ", **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}}

# frequent characters that Traditional text does not have, each with what stands there instead
_SIMPLIFIED = (
    "们这说时国对会还没让吗给为见开关问题东车书买卖话语谁读写认识爱听"
    "电脑间经样过进长门马鱼饭钱错难气学应总战无习乐觉请谢边头点现场师帮"
)
_TRADITIONAL = (
    "們這說時國對會還沒讓嗎給為見開關問題東車書買賣話語誰讀寫認識愛聽"
    "電腦間經樣過進長門馬魚飯錢錯難氣學應總戰無習樂覺請謝邊頭點現場師幫"
)
_SCRIPT = str.maketrans(dict.fromkeys(_SIMPLIFIED, "\0") | dict.fromkeys(_TRADITIONAL, "\1"))


def clean_en(text: str) -> str:
    """English as published: no (brackets) and hyphens, punctuation between spaces."""
    text = re.sub(r"\([^()]*\)", "", text).replace("-", "")
    return " ".join(re.sub(r'([.,;!?()"])', r" \1 ", text).split())


def clean_zh(text: str) -> str:
    """Chinese as published: half width, no (brackets), spaces, dashes and underscores, punctuation between spaces."""
    text = re.sub(r"\([^()]*\)", "", text.translate(_HALF))
    text = re.sub(r"[ —_]", "", text).replace("“", '"').replace("”", '"')
    return " ".join(re.sub(r'([。,;!?()"~「」])', r" \1 ", text).split())


CLEAN: dict[Language, Callable[[str], str]] = {"en": clean_en, "zh": clean_zh}


def why_dropped(en: str, zh: str) -> str | None:
    """Why a cleaned pair is not trained on: "empty", "long" or "ratio"; None: it is kept.

    As published, English is counted in words and Chinese in characters, spaces among them.
    """
    words, characters = len(en.split()), len(zh)
    if min(words, characters) < MIN_LENGTH:
        return "empty"
    if max(words, characters) > MAX_LENGTH:
        return "long"
    return "ratio" if max(words, characters) > RATIO * min(words, characters) else None


def is_simplified(lines: Iterable[str]) -> bool:
    """Whether Chinese is mostly in Simplified script, by some frequent characters that differ."""
    text = "".join(lines).translate(_SCRIPT)
    return text.count("\0") > text.count("\1")
