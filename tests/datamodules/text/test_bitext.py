"""datamodules/text/bitext.py: the same pairs from every kind of file; bad ones are named, with the line."""

import codecs
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.text.bitext import Bitext, find_bitext, is_pseudo, read_bitext, read_lines

EN, ZH = ["Hello.", "How are you?", "Bye."], ["你好。", "你好嗎？", "再見。"]


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    data = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(*columns: list[str]) -> list[str]:
    return ["\t".join(fields) for fields in zip(*columns, strict=True)]


class TestLayouts:
    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_two_files(self, tmp_path: Path, end: str) -> None:
        write(tmp_path / f"raw.en{end}", EN)
        write(tmp_path / f"raw.zh{end}", ZH, "\r\n")
        found = find_bitext(tmp_path, "raw")
        assert found.files == [tmp_path / f"raw.en{end}", tmp_path / f"raw.zh{end}"]
        assert read_bitext(found) == (EN, ZH, 1)

    @pytest.mark.parametrize("end", [".tsv", ".tsv.gz", ".txt"])
    def test_a_table(self, tmp_path: Path, end: str) -> None:
        write(tmp_path / f"a{end}", table(["id", "1", "2", "3"], ["zh", "x", "x", "x"], ["zh_hant", *ZH], ["en", *EN]))
        write(tmp_path / f"b{end}", table(EN, ZH, ["CC-BY"] * 3))
        write(tmp_path / f"c{end}", table(["en", *EN], ["zh", *ZH]))
        for name in "abc":
            found = find_bitext(tmp_path, f"{name}{end}")
            assert len(found.files) == 1
            assert read_bitext(found) == (EN, ZH, 1 if name == "b" else 2)

    def test_blank_lines_of_a_table_are_empty_pairs(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tsv", ["a\t一", "", "b\t二"])
        assert read_bitext(find_bitext(tmp_path, "a.tsv")) == (["a", "", "b"], ["一", "", "二"], 1)

    def test_one_side(self, tmp_path: Path) -> None:
        write(tmp_path / "test.en", EN)
        found = find_bitext(tmp_path, "test")
        assert found == Bitext(tmp_path / "test.en", None)
        assert read_bitext(found) == (EN, ["", "", ""], 1)

    def test_nothing(self, tmp_path: Path) -> None:
        assert find_bitext(tmp_path, "raw") == find_bitext(tmp_path, "a.tsv") == Bitext(None, None)

    def test_pseudo(self) -> None:
        assert is_pseudo(["。"] * 3)
        assert is_pseudo(["", "。 "])
        assert not is_pseudo(["。", "好。"])


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=5))
def test_only_line_feeds_end_lines(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not U+2028, U+0085 or form feeds, which would set one file against the other; the last one may be missing."""
    lines = [line.removesuffix("\r").removeprefix("\ufeff") for line in lines]
    path = write(tmp_path_factory.getbasetemp() / "lines", lines)
    assert read_lines(path) == lines
    if lines and lines[-1]:
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        assert read_lines(path) == lines


class TestBadFiles:
    def test_unequal_lines(self, tmp_path: Path) -> None:
        write(tmp_path / "raw.en", EN)
        write(tmp_path / "raw.zh", ZH[:2])
        with pytest.raises(DataError, match=r"raw\.en has 3 lines, .*raw\.zh has 2: expected as many"):
            read_bitext(find_bitext(tmp_path, "raw"))

    def test_no_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "raw.zh"
        for mark in (b"", codecs.BOM_UTF8):
            path.write_bytes(mark + "你好\n再".encode() + "見".encode("big5"))
            with pytest.raises(DataError, match=r"raw\.zh, line 2: byte 0xa8 is no UTF-8"):
                read_lines(path)

    def test_cut_gz(self, tmp_path: Path) -> None:
        path = write(tmp_path / "raw.en.gz", EN * 100)
        data = path.read_bytes()
        for broken in (data[:-5], b"no gz at all", data[:20] + b"\xff\xff" + data[22:]):
            path.write_bytes(broken)
            with pytest.raises(DataError, match=r"raw\.en\.gz: cut short or no gz file .*; copy or download it again"):
                read_lines(path)

    @pytest.mark.parametrize("header", ["", "en", "en\tde", "id\tzh", "sentence"])
    def test_missing_columns(self, tmp_path: Path, header: str) -> None:
        write(tmp_path / "a.tsv", [header, "a\tb"])
        with pytest.raises(DataError, match=r"a\.tsv, line 1: .*; expected tab-separated columns, English and then"):
            read_bitext(find_bitext(tmp_path, "a.tsv"))

    def test_a_short_row(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tsv", ["id\ten\tzh", "1\ta\t一", "2\tb"])
        with pytest.raises(DataError, match=r"a\.tsv, line 3: 2 columns, expected at least 3"):
            read_bitext(find_bitext(tmp_path, "a.tsv"))


def test_the_monolingual_corpus_goes_by_its_published_name(tmp_path: Path) -> None:
    name = "ted_zh_corpus.deduped"
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress("一\n二\n".encode()))
    assert find_bitext(tmp_path, name, alone=True) == (None, None)
    (tmp_path / f"{name}.en").write_text("one\ntwo\n")
    assert find_bitext(tmp_path, name) == (tmp_path / f"{name}.en", None)
    bitext = find_bitext(tmp_path, name, alone=True)
    assert read_bitext(bitext) == (["one", "two"], ["一", "二"], 1)
