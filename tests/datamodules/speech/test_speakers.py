"""datamodules/speech/speakers.py: who speaks, in the layouts of public corpora and in others."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.speech.speakers import describe, parts_joined, parts_mixed, read_tables, speakers_of

LAYOUTS = {
    "VoxCeleb": {
        "id10001/1zcIwhmdeo4/00001.wav": "id10001",
        "id10001/7gWzIy6yIIk/00001.wav": "id10001",
        "id10002/0_laIeN-Q44/00001.wav": "id10002",
    },
    "VoxCeleb in parts, one speaker alone": {
        "dev/aac/id10001/vidA/1.wav": "id10001",
        "test/wav/id10001/vidB/1.wav": "id10001",
    },
    "LibriSpeech": {
        "train-clean-100/19/198/19-198-0000.flac": "19",
        "train-clean-100/19/227/19-227-0000.flac": "19",
        "train-clean-100/26/495/26-495-0000.flac": "26",
        "dev-clean/84/121123/84-121123-0000.flac": "84",
    },
    "TIMIT": {
        "TRAIN/DR1/FCJF0/SA1.WAV": "FCJF0",
        "TRAIN/DR2/FAEM0/SA1.WAV": "FAEM0",
        "TEST/DR1/FAKS0/SA1.WAV": "FAKS0",
    },
    "TIMIT, a part": {"dr1/fcjf0/sa1.wav": "fcjf0", "dr1/fdaw0/sa1.wav": "fdaw0", "dr2/faem0/sa1.wav": "faem0"},
    "VCTK": {
        "wav48_silence_trimmed/p225/p225_001_mic1.flac": "p225",
        "wav48_silence_trimmed/p226/p226_001_mic1.flac": "p226",
    },
    "a folder a speaker": {"anna/1.wav": "anna", "bob/1.wav": "bob"},
    "wrapped": {"my/corpus/anna/1.wav": "anna", "my/corpus/bob/1.wav": "bob"},
    "below some": {"anna/1.wav": "anna", "anna/more/2.wav": "anna", "bob/1.wav": "bob"},
    "names repeat": {"anna/s1/1.wav": "anna", "anna/s2/1.wav": "anna", "bob/s1/1.wav": "bob"},
    "names repeat deep": {"x/a/s1/c/1.wav": "a", "y/b/s1/c/1.wav": "b", "y/b/s2/d/1.wav": "b"},
    "men and women": {"m/anna/1.wav": "anna", "f/bea/1.wav": "bea"},
    "one folder": {"1.wav": None, "2.wav": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts_and_others(layout: str) -> None:
    found = speakers_of(list(LAYOUTS[layout]))
    assert dict(zip(LAYOUTS[layout], found.of, strict=True)) == LAYOUTS[layout]


NAMES = ["anna/q/1.wav", "anna/r/2.wav", "bob/z/1.wav"]


def test_what_cannot_be_told_is_asked() -> None:
    with pytest.raises(DataError, match=r"src: it cannot .* say --speaker_level 1 \(anna, bob, \.\.\.\) or 2 \(q, r"):
        speakers_of(NAMES, where="src")
    for level, expected in ((1, ["anna", "anna", "bob"]), (-2, ["anna", "anna", "bob"]), (-1, ["q", "r", "z"])):
        assert speakers_of(NAMES, level).of == expected
    with pytest.raises(DataError, match=r"src/anna/q/1\.wav \(and 2 more\): lies in too few folders"):
        speakers_of(NAMES, 3, "src")
    with pytest.raises(DataError, match="speaker_level is 0"):
        speakers_of(NAMES, 0)


def test_one_name_under_two_parents_is_never_one_speaker_in_silence() -> None:
    names = ["dr1/a/1.wav", "dr2/a/1.wav", "dr2/b/1.wav"]
    assert speakers_of(names).of == ["dr1-a", "dr2-a", "b"]
    assert parts_joined(names, speakers_of(names).of) is None
    names = ["train/a/1.wav", "test/a/2.wav", "test/b/1.wav"]
    found = speakers_of(names).of
    assert found == ["a", "a", "b"]
    assert (parts_joined(names, found) or "").startswith(
        "1 of the speakers lie in several folders and count once each: a"
    )


@given(
    st.lists(
        st.lists(st.sampled_from("abcd"), min_size=1, max_size=4).map("/".join), min_size=1, max_size=12, unique=True
    ),
    st.integers(-4, 4),
)
def test_any_tree_has_speakers_or_one_line(folders: list[str], level: int) -> None:
    """Never an error of another kind; recordings of one folder have one speaker; a level is what it says."""
    names = [f"{folder}/{n}.wav" for folder in folders for n in range(2)]
    for chosen in (None, level):
        try:
            found = speakers_of(names, chosen).of
        except DataError:
            continue
        assert found[::2] == found[1::2]
        for name, speaker in zip(names, found, strict=True):
            parts = name.split("/")[:-1]
            assert speaker is not None
            if chosen is not None:
                assert speaker.split("-")[-1] == parts[chosen - 1 if chosen > 0 else chosen]


def test_the_line(tmp_path: Path) -> None:
    line = describe(["b"] * 120 + ["a"] * 7 + ["x" * 128], "how")
    assert line == "3 speakers: a (7 recordings), b (120 recordings), xxxxxxxxxxxx… (1 recordings) (how)"
    assert describe([str(n) for n in range(9)], "how").endswith("4 (1 recordings), and 4 more (how)")


def test_train_and_test_taken_together_are_said() -> None:
    line = parts_mixed(["TRAIN/DR1/FCJF0/SA1.WAV", "TEST/DR1/FAKS0/SA1.WAV"]) or ""
    assert line.startswith("TRAIN/ and TEST/ are taken together; name one of them with --source")
    assert parts_mixed(["train-clean-100/19/198/19-198-0.flac", "trainer/x.wav"]) is None


def test_common_voice(tmp_path: Path) -> None:
    table = tmp_path / "validated.tsv"
    table.write_text('client_id\tpath\tsentence\nA\tx.mp3\tsays "this\nB\ty.mp3\t\n', encoding="utf-8")
    (tmp_path / "notes.tsv").write_text("a\tb\n")
    found = read_tables([table, tmp_path / "notes.tsv"])
    assert found is not None
    assert found.speaker == {"x.mp3": "A", "y.mp3": "B"}
    assert read_tables([tmp_path / "notes.tsv"]) is None
    table.write_text("client_id\tpath\nA\tx.mp3\nB\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"validated\.tsv, line 3: no path or client_id"):
        read_tables([table])
