"""datamodules/text/corpus.py: cleaned pairs and their tokens, made once, gathered as by hand."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.generated import write_translation
from datamodules.text import corpus as token_corpus
from datamodules.text.bitext import Bitext, find_bitext
from datamodules.text.cleaning import clean_en, clean_zh
from datamodules.text.corpus import CleanPairs, TokenCorpus, clean_pairs, encode_pairs, trained_tokenizer
from datamodules.text.tokenizer import EOS, PAD, Tokenizer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the maps; no test touches the project's own cache."""
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEEML_CACHE", str(tmp_path_factory.mktemp("cache")))
        sample = tmp_path_factory.mktemp("sample") / "s"
        write_translation(sample)
        pairs = clean_pairs([find_bitext(sample, "raw")])
        return trained_tokenizer(pairs, np.arange(500), 700, 0)


def bitext(folder: Path, *pairs: tuple[str, str], name: str = "a.tsv") -> Bitext:
    (folder / name).write_text("".join(f"{en}\t{zh}\n" for en, zh in pairs), encoding="utf-8")
    return find_bitext(folder, name)


def no_more(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("again")

    monkeypatch.setattr(token_corpus, name, fail)


RAW = [("Hello, (cough) you.", "你好，你。"), ("", "空"), ("a b", "好" * 30), ("w " * 1001, "字"), ("Bye.", "再見。")]


class TestCleanPairs:
    def test_kept(self, tmp_path: Path) -> None:
        found = clean_pairs([bitext(tmp_path, *RAW), bitext(tmp_path, RAW[0], name="b.tsv")])
        assert found.place.tolist() == [[0, 0], [0, 4], [1, 0]]
        assert found.counts.tolist() == [[5, 1, 1, 1], [1, 0, 0, 0]]
        assert found.text() == ["Hello , you .", "你好 , 你 。", "Bye .", "再見 。", "Hello , you .", "你好 , 你 。"]
        assert (found.hashes[0] == found.hashes[2]).all()
        assert len(np.unique(found.hashes)) == 4
        assert found.simplified.tolist() == [False, False]

    def test_all_of_a_test_set(self, tmp_path: Path) -> None:
        found = clean_pairs([bitext(tmp_path, *RAW)], keep_all=True)
        assert found.place[:, 1].tolist() == [0, 1, 2, 3, 4]
        assert found.text() == [side for en, zh in RAW for side in (clean_en(en), clean_zh(zh))]

    def test_none(self, tmp_path: Path) -> None:
        found = clean_pairs([bitext(tmp_path, ("", ""), ("", "一"))])
        assert (len(found), found.text(), found.counts.tolist()) == (0, [], [[2, 2, 0, 0]])

    def test_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = bitext(tmp_path, *RAW)
        text = clean_pairs([source]).text()
        with monkeypatch.context() as patch:
            no_more(patch, "_clean")
            assert clean_pairs([source]).text() == text
            with pytest.raises(AssertionError, match="again"):
                clean_pairs([source], keep_all=True)
        bitext(tmp_path, ("Other.", "別的。"))
        assert clean_pairs([source]).text() == ["Other .", "別的 。"]

    def test_a_bad_file_leaves_nothing(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "raw.en").write_text("a\n")
        (tmp_path / "raw.zh").write_bytes(b"\xff\n")
        with pytest.raises(Exception, match="no UTF-8"):
            clean_pairs([find_bitext(tmp_path, "raw")])
        assert not [path for path in folder.iterdir() if path.suffix in (".npz", ".part")]


def sample(folder: Path) -> CleanPairs:
    write_translation(folder / "s")
    return clean_pairs([find_bitext(folder / "s", "test")])


class TestTokenCorpus:
    def test_as_encoded(self, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(token_corpus, "CHUNK", 77)
        parts = [sample(tmp_path), clean_pairs([bitext(tmp_path, *RAW)])]
        found = encode_pairs(parts, tokenizer)
        ids = tokenizer.encode([line for part in parts for line in part.text()])
        assert len(found) == 202
        assert found.tokens.dtype == np.uint16
        assert [found.ids(row, side) for row in range(202) for side in (0, 1)] == ids
        assert found.lengths.ravel().tolist() == [len(sentence) + 1 for sentence in ids]
        chosen = np.arange(len(tokenizer)) % 3 == 0
        assert found.count(chosen) == sum(token % 3 == 0 for sentence in ids for token in sentence)

    def test_encoded_once(self, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = sample(tmp_path)
        first = encode_pairs([pairs], tokenizer)
        other = trained_tokenizer(pairs, np.arange(100), 600, 0)
        assert other.model != tokenizer.model
        no_more(monkeypatch, "_encode")
        no_more(monkeypatch, "train_tokenizer")
        assert np.array_equal(encode_pairs([pairs], tokenizer).tokens, first.tokens)
        assert trained_tokenizer(pairs, np.arange(100), 600, 0).model == other.model
        for work in (
            lambda: encode_pairs([pairs], other),
            lambda: encode_pairs([pairs, pairs], tokenizer),
            lambda: trained_tokenizer(pairs, np.arange(101), 600, 0),
            lambda: trained_tokenizer(pairs, np.arange(100), 601, 0),
        ):
            with pytest.raises(AssertionError, match="again"):
                work()

    def test_many_pieces(self, tmp_path: Path) -> None:
        class Large(Tokenizer):
            model = b""

            def __init__(self) -> None:
                pass

            def __len__(self) -> int:
                return 70000

            def encode(self, texts: object, threads: int = 1) -> list[list[int]]:
                return [[69999, 5], []]

        found = encode_pairs([clean_pairs([bitext(tmp_path, RAW[0])])], Large())
        assert (found.ids(0, 0), found.ids(0, 1)) == ([69999, 5], [])

    def test_another_process_opens_the_map(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        found = encode_pairs([sample(tmp_path)], tokenizer)
        sent = pickle.dumps(found)
        assert len(sent) < 1000
        assert np.array_equal(pickle.loads(sent).tokens, found.tokens)


@given(
    sentences=st.lists(st.lists(st.integers(10, 99), max_size=7), min_size=2, max_size=12).filter(
        lambda sentences: len(sentences) % 2 == 0
    ),
    side=st.integers(0, 1),
    longest=st.integers(2, 9),
    multiple=st.integers(1, 4),
    tags=st.none() | st.integers(0, 2**6),
    data=st.data(),
)
def test_padded_as_by_hand(
    sentences: list[list[int]], side: int, longest: int, multiple: int, tags: int | None, data: st.DataObject
) -> None:
    tokens = np.array([token for sentence in sentences for token in sentence], np.uint16)
    corpus = TokenCorpus(tokens, np.cumsum([0, *map(len, sentences)]), Path())
    rows = data.draw(st.lists(st.integers(0, len(corpus) - 1), min_size=1, max_size=6))
    tagged = [tags is not None and bool(tags >> place & 1) for place in range(len(rows))]
    first = None if tags is None else np.where(tagged, 7, PAD)
    expected = []
    for row, tag in zip(rows, tagged, strict=True):
        said = [7] * tag + sentences[2 * row + side]
        expected.append([*said[: longest - 1], EOS])
    width = -(-max(map(len, expected)) // multiple) * multiple
    expected = [said + [PAD] * (width - len(said)) for said in expected]
    assert corpus.padded(np.array(rows), side, longest, multiple, first).tolist() == expected
