"""From cleaned or decoded text to text as it is written. Pure functions."""

import re

_FULL = dict(zip(",?!:;()", "，？！：；（）", strict=True))
_CJK = "\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_HALF_NEAR_CJK = re.compile(rf"(?<=[{_CJK}])[,?!:;()]|[,?!:;()](?=[{_CJK}])")
_SPACE_NEAR_CJK = re.compile(rf"(?<=[{_CJK}]) +| +(?=[{_CJK}])")


def restore_zh(text: str) -> str:
    """Chinese: no spaces beside Chinese characters, and full-width punctuation there.

    >>> restore_zh("你好 , 我用 python 3.5 。")
    '你好，我用python 3.5。'
    """
    text = _SPACE_NEAR_CJK.sub("", restore_en(text))
    while (full := _HALF_NEAR_CJK.sub(lambda match: _FULL[match[0]], text)) != text:  # one mark may follow another
        text = _SPACE_NEAR_CJK.sub("", full)
    return text


def restore_en(text: str) -> str:
    """English: no space before punctuation, none in 1,000 and 2.5.

    >>> restore_en("yes , it is ( nearly ) so .")
    'yes, it is (nearly) so.'
    """
    text = re.sub(r"(?<=\() +| +(?=[.,;:!?)])", "", text).strip()
    return re.sub(r"(?<=\d\.) (?=\d)|(?<=\d,) (?=\d{3}\b)", "", text)


RESTORE = {"en": restore_en, "zh": restore_zh}
"""By language."""
