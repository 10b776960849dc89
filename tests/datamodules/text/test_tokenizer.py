"""datamodules/text/tokenizer.py: every text has pieces and comes back; the module finds the reserved pieces."""

import io
import unicodedata

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.generated import _dictionary, _said
from datamodules.text.tokenizer import BOS, EOS, PAD, TAG, UNK, Tokenizer, train_tokenizer


def texts(count: int = 300) -> list[str]:
    rng = np.random.default_rng(0)
    words = _dictionary(rng)
    return [side for _ in range(count) for side in _said(rng, words)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(texts(), 800))


def is_plain(character: str) -> bool:
    """Whether normalisation leaves it alone: NFKC and lower case, spaces joined, no control characters."""
    return unicodedata.normalize("NFKC", character).casefold() == character and character not in "▁\u200b"


PLAIN = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], max_codepoint=0x2FA1F).filter(is_plain)
).filter(lambda text: unicodedata.is_normalized("NFKC", text))


@example("𠮷野家 😀 ć ｡ 龘".replace("｡", "。"))
@given(PLAIN.map(str) | st.lists(PLAIN.filter(bool)).map(" ".join))
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode([text])
    assert not {PAD, UNK, BOS, EOS, tokenizer.tag} & set(ids[0])
    assert tokenizer.decode(ids) == [text]


def test_unknown_characters_are_spelled_in_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["龘"])[0]
    assert tokenizer.is_byte[ids].sum() == len("龘".encode())
    assert tokenizer.is_byte.sum() == 256


def test_normalised(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(["  ABC　Ｄ  １ "])) == ["abc d 1"]


def test_reserved(tokenizer: Tokenizer) -> None:
    own = tokenizer.processor
    assert (PAD, UNK, BOS, EOS) == (own.pad_id(), own.unk_id(), own.bos_id(), own.eos_id()) == (0, 1, 2, 3)
    assert own.id_to_piece(tokenizer.tag) == TAG
    assert tokenizer.decode([[BOS, tokenizer.tag, *tokenizer.encode(["abc"])[0], EOS, PAD], []]) == ["abc", ""]
    assert tokenizer.decode([]) == []


def test_no_text_has_the_tag(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode([f"a {TAG} b"])
    assert tokenizer.tag not in ids[0]
    assert tokenizer.decode(ids) == [f"a {TAG} b"]


def test_the_same_texts_give_the_same_pieces(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(iter(texts()), 800)
    assert again == tokenizer.model
    assert train_tokenizer(texts()[:-50], 800) != again


def test_few_texts_give_fewer_pieces() -> None:
    found = Tokenizer(train_tokenizer(["a small text", "一些字"], 8000))
    assert 256 < len(found) < 400
    assert found.decode(found.encode(["a text 一字"])) == ["a text 一字"]


def test_as_a_tensor(tokenizer: Tokenizer) -> None:
    saved = io.BytesIO()
    torch.save({"tokenizer": tokenizer.as_tensor()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)["tokenizer"]
    assert loaded.dtype == torch.uint8
    assert Tokenizer.from_tensor(loaded).encode(texts(5)) == tokenizer.encode(texts(5))


def test_too_few_pieces_for_the_characters() -> None:
    with pytest.raises(DataError, match=r"data\.vocabulary is 300: no tokenizer can be trained with it"):
        train_tokenizer(texts(), 300)


def test_no_tokenizer() -> None:
    with pytest.raises(DataError, match="no SentencePiece model"):
        Tokenizer(b"something else")


def test_a_tokenizer_of_elsewhere() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=model, vocab_size=500, minloglevel=2
    )
    with pytest.raises(DataError, match="other reserved pieces than pad 0, unk 1, bos 2, eos 3 and <bt>"):
        Tokenizer(model.getvalue())
