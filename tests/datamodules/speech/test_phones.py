"""datamodules/speech/phones.py: folding, alignments in both formats, the phone of each frame."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.speech.audio import frame_centres
from datamodules.speech.phones import FOLDED, Labels, Segment, classes, frame_labels, read_segments, read_table

COURSE = "iy ih eh ae ah uw uh aa ey ay oy aw ow l r y w er m n ng ch jh dh b d dx g p t k z v f th s sh hh sil"

# Kaldi's egs/timit/s5/conf/phones.60-48-39.map, in its order
KALDI = """aa aa aa
ae ae ae
ah ah ah
ao ao aa
aw aw aw
ax ax ah
ax-h ax ah
axr er er
ay ay ay
b b b
bcl vcl sil
ch ch ch
d d d
dcl vcl sil
dh dh dh
dx dx dx
eh eh eh
el el l
em m m
en en n
eng ng ng
epi epi sil
er er er
ey ey ey
f f f
g g g
gcl vcl sil
h# sil sil
hh hh hh
hv hh hh
ih ih ih
ix ix ih
iy iy iy
jh jh jh
k k k
kcl cl sil
l l l
m m m
n n n
ng ng ng
nx n n
ow ow ow
oy oy oy
p p p
pau sil sil
pcl cl sil
r r r
s s s
sh sh sh
t t t
tcl cl sil
th th th
uh uh uh
uw uw uw
ux uw uw
v v v
w w w
y y y
z z z
zh zh sh"""


class TestFolding:
    def test_as_kaldi(self) -> None:
        rows = {row.split()[0]: row.split() for row in KALDI.splitlines()}
        assert FOLDED[61].keys() == rows.keys() | {"q"}
        for phone, row in rows.items():
            assert [FOLDED[61][phone], FOLDED[48][phone], FOLDED[39][phone]] == row
        assert [FOLDED[61]["q"], FOLDED[48]["q"], FOLDED[39]["q"]] == ["q", "sil", "sil"]

    def test_classes(self) -> None:
        assert [len(classes(size)) for size in (39, 48, 61)] == [39, 48, 61]
        assert " ".join(classes(39)) == COURSE

    def test_the_sample_has_all_61(self, real_data) -> None:
        with ZipFile(real_data("hw2_phoneme") / "timit_sample_13spk.zip") as zipped:
            texts = [zipped.read(name).decode() for name in zipped.namelist() if name.endswith(".phn")]
        assert {line.split()[2] for text in texts for line in text.splitlines()} == FOLDED[61].keys()


def phn(folder: Path, text: str) -> Path:
    path = folder / "a.phn"
    path.write_text(text)
    return path


class TestPhn:
    def test_times_are_samples(self, tmp_path: Path) -> None:
        path = phn(tmp_path, "0 1600 h#\n1600 3200 sh\n\n3200 4000 IY \n")
        assert read_segments(path, 16000, 0.25)[0] == [(0, 0.1, "h#"), (0.1, 0.2, "sh"), (0.2, 0.25, "iy")]
        assert read_segments(path, 8000, 0.5)[0][1] == (0.2, 0.4, "sh")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"a\.phn: no phone in it"),
            ("0 1600 h#\n1600 3200\n", r"line 2: '1600 3200'; expected `start end phone`, in samples"),
            ("0 1600 h# x\n", "line 1: '0 1600 h# x'; expected"),
            ("0 0.1 h#\n", "line 1: '0 0.1 h#'; expected"),
            (
                "0 1600 h#\n1500 3200 sh\n",
                r"line 2: 'sh' starts at 0\.09375 s, before the phone above it ends \(0\.1 s\)",
            ),
            ("-10 1600 h#\n", "line 1: 'h#' from -0.000625 s to 0.1 s, expected 0 <= start < end"),
            ("0 1600 h#\n3200 1600 sh\n", "line 2: 'sh' from 0.2 s to 0.1 s, expected"),
            ("0 1600 h#\n1600 1600 sh\n", "line 2: 'sh' from 0.1 s to 0.1 s, expected"),
            ("0 1600 h#\n\n1600 3200 shh\n", "line 3: unknown phone 'shh'; expected one of TIMIT's 61, such as 'sh'"),
            ("0 1600 ʘ\n", "line 1: unknown phone 'ʘ'; expected one of TIMIT's 61, or 'sil'"),
            ("0 1600 h#\n1600 4161 sh\n", r"line 2: 'sh' ends at 0.260062 s, but the recording is 0.25 s long"),
        ],
    )
    def test_errors_say_where(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            read_segments(phn(tmp_path, text), 16000, 0.25)
        assert str(tmp_path / "a.phn") in str(caught.value)

    def test_one_frame_too_long_is_allowed(self, tmp_path: Path) -> None:
        assert read_segments(phn(tmp_path, "0 4160 h#"), 16000, 0.25)

    def test_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.phn").write_bytes(b"\x80\x81")
        with pytest.raises(DataError, match="byte 0x80 is no UTF-8; save the file as UTF-8"):
            read_segments(tmp_path / "a.phn", 16000, 1)


def interval_tier(name: str, rows: list[tuple[float, float, str]], long: bool, number: int = 1) -> str:
    quoted = [(a, b, '"' + text.replace('"', '""') + '"') for a, b, text in rows]
    if not long:
        return f'"IntervalTier"\n"{name}"\n0\n0.5\n{len(rows)}\n' + "".join(f"{a}\n{b}\n{t}\n" for a, b, t in quoted)
    head = f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{name}" \n'
    head += f"        xmin = 0 \n        xmax = 0.5 \n        intervals: size = {len(rows)} \n"
    return head + "".join(
        f"        intervals [{n}]:\n            xmin = {a} \n            xmax = {b} \n            text = {t} \n"
        for n, (a, b, t) in enumerate(quoted, 1)
    )


def grid(tiers: dict[str, list[tuple[float, float, str]]], long: bool) -> str:
    """A TextGrid as Praat writes it, with a point tier between."""
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    parts = [interval_tier(name, rows, long, number) for number, (name, rows) in enumerate(tiers.items(), 1)]
    if not long:
        points = '"TextTier"\n"points"\n0\n0.5\n1\n0.25\n"7 ""here"""\n'
        return f"{head}0\n0.5\n<exists>\n{len(tiers) + 1}\n" + points + "".join(parts)
    points = (
        '    item [9]:\n        class = "TextTier" \n        name = "points" \n        xmin = 0 \n        xmax = 0.5 \n'
        '        points: size = 1 \n        points [1]:\n            number = 0.25 \n            mark = "7 ""here""" \n'
    )
    return f"{head}xmin = 0 \nxmax = 0.5 \ntiers? <exists> \nsize = {len(tiers) + 1} \nitem []: \n{points}" + "".join(
        parts
    )


WORDS = [(0, 0.5, 'she "said" 3')]
PHONES = [(0, 0.1, ""), (0.1, 0.2, "SH"), (0.2, 0.35, "IY1"), (0.35, 0.5, "sil")]
SEGMENTS = [(0, 0.1, "h#"), (0.1, 0.2, "sh"), (0.2, 0.35, "iy"), (0.35, 0.5, "h#")]


class TestTextGrid:
    @pytest.mark.parametrize("long", [True, False])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("name", ["phones", "Phone", "phonemes"])
    def test_formats(self, tmp_path: Path, long: bool, encoding: str, name: str) -> None:
        path = tmp_path / "a.TextGrid"
        path.write_text(grid({name: PHONES, "wörds": WORDS}, long), encoding, newline="\r\n")
        assert read_segments(path, 44100, 0.5)[0] == SEGMENTS

    def test_without_a_name_the_last_tier_counts(self, tmp_path: Path) -> None:
        path = tmp_path / "a.TextGrid"
        path.write_text(grid({"words": WORDS, "MAU": PHONES}, True))
        assert read_segments(path, 16000, 0.5)[0] == SEGMENTS

    @pytest.mark.parametrize("long", [True, False])
    def test_errors_say_where(self, tmp_path: Path, long: bool) -> None:
        path = tmp_path / "a.TextGrid"
        text = grid({"phones": PHONES}, long)
        wrong = {
            text.replace("SH", "shh"): ("unknown phone 'shh'", "0.1"),
            text.replace("0.35", "0.15", 1): ("'iy' from|'IY1' from", "0.2"),
            text[: text.index('"SH"')]: ("the end instead of a text in quotes", "text =" if long else "0.2"),
            text.replace('"SH"', "5"): ("5 instead of a text in quotes", "5"),
            text.replace("0.35", "0.3.5", 1): ("0.3.5 is no number", "0.3.5"),
        }
        for content, (message, mark) in wrong.items():
            path.write_text(content)
            with pytest.raises(DataError, match=message) as caught:
                read_segments(path, 16000, 0.5)
            line = int(str(caught.value).removeprefix(f"{path}, line ").split(":")[0].split(",")[0])
            assert "tier 'phones'" in str(caught.value)
            assert mark in content.splitlines()[line - 1], message

    def write(self, folder: Path, tiers: dict[str, list[tuple[float, float, str]]]) -> Path:
        path = folder / "a.TextGrid"
        path.write_text(grid(tiers, True))
        return path

    @pytest.mark.parametrize("order", [("words", "x"), ("x", "words")])
    def test_the_tier_of_phones_is_found_by_its_labels(self, tmp_path: Path, order: tuple[str, str]) -> None:
        tiers = {"words": WORDS, "x": PHONES}
        path = self.write(tmp_path, {name: tiers[name] for name in order})
        assert read_segments(path, 16000, 0.5)[0] == SEGMENTS

    def test_several_speakers(self, tmp_path: Path) -> None:
        """A tier each, silent while another speaks; where two speak at a time, both tiers are named."""
        anna, bob = [(0, 0.2, "sh"), (0.2, 0.5, "")], [(0, 0.3, "sil"), (0.3, 0.5, "IY")]
        tiers = {"anna - words": WORDS, "anna - phones": anna, "bob - words": WORDS, "bob - phones": bob}
        path = self.write(tmp_path, tiers)
        assert read_segments(path, 16000, 0.5)[0] == [(0, 0.2, "sh"), (0.3, 0.5, "iy")]
        assert read_segments(path, 16000, 0.5, Labels("Bob - phones"))[0] == [(0, 0.3, "h#"), (0.3, 0.5, "iy")]
        self.write(tmp_path, tiers | {"bob - phones": [(0, 0.1, "sil"), (0.1, 0.5, "IY")]})
        with pytest.raises(DataError, match=r"tier 'bob - phones': 'IY' at 0\.1 s, while tier 'anna - phones' has"):
            read_segments(path, 16000, 0.5)

    def test_no_tier_of_phones_alone(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"words": WORDS, "notes": [(0, 0.5, "bad")]})
        with pytest.raises(DataError, match=r"no tier holds phones alone; there are 'words', 'notes'; name .* --tier"):
            read_segments(path, 16000, 0.5)
        with pytest.raises(DataError, match=r"no tier 'z' \(--tier\); there are 'words', 'notes'"):
            read_segments(path, 16000, 0.5, Labels("z"))

    def test_labels_that_are_no_phone(self, tmp_path: Path) -> None:
        rows = [(0, 0.1, "spn"), (0.1, 0.2, "AH0_B"), (0.2, 0.3, "[noise]"), (0.3, 0.4, "spn"), (0.4, 0.5, "ɪ")]
        path = self.write(tmp_path, {"phones": rows})
        with pytest.raises(DataError, match=r"line \d+, tier 'phones': unknown phone 'ɪ'; .* --phone_table FILE"):
            read_segments(path, 16000, 0.5)
        table = tmp_path / "table.txt"
        table.write_text("ɪ ih\n\nSPN hh\n", encoding="utf-8")
        segments, mapped = read_segments(path, 16000, 0.5, Labels(table=read_table(table)))
        assert [segment.phone for segment in segments] == ["hh", "ah", "h#", "hh", "ih"]
        assert mapped == {"spn": 2, "[noise]": 1, "ɪ": 1}
        table.write_text("a b c\n")
        with pytest.raises(DataError, match=r"table\.txt, line 1: 'a b c'; expected `label phone`"):
            read_table(table)

    def test_others_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.TextGrid"
        for content, message in (
            ('File type = "ooTextFile"\nObject class = "Pitch 1"', "no TextGrid"),
            (grid({}, True), "no interval tier"),
            ("", "line 1: the end instead of a text in quotes"),
        ):
            path.write_text(content)
            with pytest.raises(DataError, match=message):
                read_segments(path, 16000, 0.5)


@st.composite
def alignments(draw) -> list[tuple[int, int, str]]:
    """Phones in samples, with gaps."""
    found, at = [], draw(st.integers(0, 400))
    for _ in range(draw(st.integers(1, 8))):
        end = at + draw(st.integers(1, 600))
        found.append((at, end, draw(st.sampled_from(["iy", "s", "tcl", "q"]))))
        at = end + draw(st.sampled_from([0, 0, 0, 1, 50, 159, 160, 500]))
    return found


class TestFrameLabels:
    @given(rows=alignments(), frames=st.integers(1, 40))
    def test_brute_force(self, rows: list[tuple[int, int, str]], frames: int) -> None:
        expected = []
        for t in range(frames):
            centre, name = 160 * t + 80, "h#"
            for n, (start, end, phone) in enumerate(rows):
                following = rows[n + 1][0] if n + 1 < len(rows) else end
                if start <= centre < (following if following - end < 160 else end):
                    name = phone
            expected.append(name)
        segments = [Segment(a / 16000, b / 16000, phone) for a, b, phone in rows]
        assert frame_labels(segments, frame_centres(frames) / 16000) == expected

    def test_a_centre_on_a_boundary_is_the_next_phone(self) -> None:
        segments = [Segment(0, 240 / 16000, "s"), Segment(240 / 16000, 480 / 16000, "iy")]
        assert frame_labels(segments, frame_centres(4) / 16000) == ["s", "iy", "iy", "h#"]

    def test_agrees_with_the_files(self, tmp_path: Path, real_data) -> None:
        """As many frames of each phone as it has hops, within rounding at both ends of every segment."""
        with ZipFile(real_data("hw2_phoneme") / "timit_sample_13spk.zip") as zipped:
            path = Path(zipped.extract("dr1-mcpm0/sa1.phn", tmp_path))
        segments, _ = read_segments(path, 16000, 48743 / 16000)
        found = frame_labels(segments, frame_centres(305) / 16000)
        for phone in {s.phone for s in segments}:
            own = [s for s in segments if s.phone == phone]
            assert abs(found.count(phone) - sum(s.end - s.start for s in own) * 100) <= len(own)
        assert np.isclose(segments[-1].end, 48720 / 16000)
