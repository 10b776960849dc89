"""From cleaned or decoded text to text as it is written. Pure functions."""

import re

_FULL = dict(zip(",?!:;()", "，？！：；（）", strict=True))
CJK = "\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
"""Chinese characters and their punctuation, for the [] of a pattern."""
_HALF_NEAR_CJK = re.compile(rf"(?<=[{CJK}])[,?!:;()]|[,?!:;()](?=[{CJK}])")
_SPACE_NEAR_CJK = re.compile(rf"(?<=[{CJK}]) +| +(?=[{CJK}])")
_IN_NUMBERS = re.compile(r"(?<=\d\.) (?=\d)|(?<!\d)(\d{1,3},) (?=\d{3}(?!\d))")
_IN_ABBREVIATIONS = re.compile(r"(?<=\b[A-Za-z]\.) (?=[A-Za-z]\.)")
_QUOTED = re.compile(r'" *([^"]*?) *"')


def restore_zh(text: str) -> str:
    """Chinese: no spaces beside Chinese characters, and full-width punctuation there.

    >>> restore_zh("你好 , 我用 python 3.5 。")
    '你好，我用python 3.5。'
    """
    text = _SPACE_NEAR_CJK.sub("", restore_en(re.sub(" *~ *", "~", text)))
    while (full := _HALF_NEAR_CJK.sub(lambda match: _FULL[match[0]], text)) != text:  # one mark may follow another
        text = _SPACE_NEAR_CJK.sub("", full)
    return text


def restore_en(text: str) -> str:
    """English: no space before punctuation, within brackets and quotes, in 1,000 and 2.5 and p.m.

    >>> restore_en('" yes , " he said , " it is ( nearly ) so . "')
    '"yes," he said, "it is (nearly) so."'
    """
    text = re.sub(r"(?<=\() +| +(?=[.,;:!?)])", "", text).strip()
    return _QUOTED.sub(r'"\1"', _IN_ABBREVIATIONS.sub("", _IN_NUMBERS.sub(r"\1", text)))


def one_line(text: str) -> str:
    """Text without control characters, which bytes that a model spells may make, and with single spaces."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


RESTORE = {"en": restore_en, "zh": restore_zh}
"""By language."""
