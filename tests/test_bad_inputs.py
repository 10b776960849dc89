"""Bad inputs of every reader, one line each: what becomes of a good small set, and what is said of it.

A line holds the set, how it is spoilt, and what the error says. Each error is one line that names the file, comes at
once, takes little memory and leaves nothing behind.
"""

import gzip
import io
import json
import os
import re
import resource
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from datamodules.base import HomeworkData
from datamodules.errors import DataError
from datamodules.hw1_covid import CovidData
from datamodules.hw2_phoneme import PhonemeData
from datamodules.hw3_food import FoodData
from datamodules.hw4_speaker import SpeakerData
from datamodules.hw5_translation import TranslationData
from datamodules.speech import libriphone, speaker_folder

MEMORY = 400_000  # kB that refusing may take

Spoil = Callable[[Path], object]


def tables(folder: Path) -> None:
    header = "id,AL,AK,a,tested_positive,a,tested_positive"
    rows = [f"{n},{n % 2},{1 - n % 2},{n}.5,{n},{n + 1}.5,{n + 1}" for n in range(20)]
    (folder / "covid.train.csv").write_text("\n".join([header, *rows, ""]))
    test = "\n".join(line.rpartition(",")[0] for line in [header, *rows])
    (folder / "covid.test.csv").write_text(f"{test}\n")


def frames(folder: Path) -> None:
    rng = np.random.default_rng(0)
    spoken = [
        libriphone.Utterance(f"u{n}", rng.standard_normal((20, 39)).astype(np.float32), np.arange(20) % 3)
        for n in range(6)
    ]
    libriphone.write_layout(folder, "train", spoken, ["a", "b", "sil"])


def aligned(folder: Path) -> None:
    for speaker in ("anna", "bob"):
        for n in range(2):
            sound(folder / speaker / f"{n}.wav")
            (folder / speaker / f"{n}.phn").write_text("0 1600 h#\n1600 3200 sh\n")


def images(folder: Path) -> None:
    for n in range(20):
        path = folder / "training" / f"{n % 2}_{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (n, 100 * (n % 2), 0)).save(path)


def mels(folder: Path) -> None:
    rng = np.random.default_rng(0)
    spoken = [
        speaker_folder.Utterance(f"{s}/{n}", rng.standard_normal((30, 40)).astype(np.float32), s)
        for s in ("anna", "bob")
        for n in range(10)
    ]
    speaker_folder.write_dataset(folder, "train", spoken)


def recordings(folder: Path) -> None:
    for speaker in ("anna", "bob"):
        for n in range(2):
            sound(folder / speaker / f"{n}.wav")


def pairs(folder: Path) -> None:
    (folder / "raw.en").write_text("".join(f"sentence number {n} of them\n" for n in range(60)), "utf-8")
    (folder / "raw.zh").write_text("".join(f"這是第{n}個句子\n" for n in range(60)), "utf-8")


def many(folder: Path) -> None:
    """Pairs enough for a vocabulary of 8,000 and 100 folds."""
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, 97 + rng.integers(0, 26, 30))) for _ in range(300)]
    (folder / "raw.en").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    (folder / "raw.zh").write_text("".join(f"這是第{n}個句子\n" for n in range(300)), "utf-8")


def sound(path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(3200), 16000, **options)


def fit(kind: type[HomeworkData], **options: object) -> Spoil:
    return lambda folder: kind(dir=str(folder), **options).setup("fit")


def prepare(kind: type[HomeworkData], **options: object) -> Spoil:
    return lambda folder: kind.prepare(folder.parent / "out", folder, **options)


SETS: dict[str, tuple[Spoil, Spoil]] = {
    "hw1": (tables, fit(CovidData)),
    "hw2": (frames, fit(PhonemeData)),
    "hw2 recordings": (aligned, prepare(PhonemeData)),
    "hw3": (images, fit(FoodData, image_size=8, bad_images="refuse")),
    "hw4": (mels, fit(SpeakerData)),
    "hw4 recordings": (recordings, prepare(SpeakerData)),
    "hw5": (pairs, fit(TranslationData, vocabulary=400, folds=3)),
}


# ways to spoil a file


def device(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return spoil


def pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def put(name: str, data: bytes | str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return spoil


def change(name: str, old: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), "utf-8")

    return spoil


def first(folder: Path, ending: str) -> Path:
    return sorted(folder.rglob(f"*{ending}"))[0]


def tensor(x: torch.Tensor) -> Spoil:
    return lambda folder: torch.save(x, first(folder, ".pt"))


def deflated(folder: Path) -> None:
    """A .pt file whose zip is packed: 2 MB of it become 600."""
    with zipfile.ZipFile(first(folder, ".pt"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for n in range(6):
            out.writestr(f"archive/data/{n}", bytes(100 << 20))


def sparse(name: str, size: int) -> Spoil:
    """A file of holes: it says so many bytes, and has none."""

    def spoil(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return spoil


def png(width: int, height: int) -> bytes:
    """The start of a PNG that claims so many pixels."""
    image = io.BytesIO()
    Image.new("L", (1, 1)).save(image, "PNG")
    data = bytearray(image.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def every_line(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text * 60, "utf-8")


def sessions(folder: Path) -> None:
    for path in sorted(folder.glob("*/*.wav")):
        sound(path.parent / f"of {path.parent.name} {path.stem}" / "x.wav")
        path.unlink()


def mapping(**numbers: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "mapping.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"speaker2id": numbers}))

    return spoil


def cut(folder: Path) -> None:
    (folder / "raw.en").unlink()
    (folder / "raw.en.gz").write_bytes(gzip.compress(b"x\n" * 60)[:-9])


def bomb(folder: Path) -> None:
    with gzip.open(folder / "raw.en.gz", "wb", 1) as out:
        for _ in range(300):
            out.write(bytes(1 << 20))
    (folder / "raw.en").unlink()


def hours(folder: Path) -> None:
    with soundfile.SoundFile(folder / "anna" / "long.flac", "w", 1000, 1, "PCM_16") as out:
        for _ in range(4):
            out.write(np.zeros(1_000_000))


CORPUS: list[tuple[str, str, Spoil, str]] = [
    ("hw1", "a device", device("covid.train.csv"), r"no covid\.train\.csv here"),
    ("hw1", "UTF-16 without a mark", put("covid.train.csv", "id,a\n".encode("utf-16-le")), r"csv, line 1: .*UTF-16"),
    ("hw1", "Latin-1", put("covid.train.csv", b"id,\xe9\n"), r"covid\.train\.csv, line 1: byte 0xe9 is no UTF-8"),
    ("hw1", "no header", change("covid.train.csv", "id,AL", "0,AL"), r"csv:1: the first column is '0', expected 'id'"),
    ("hw1", "an empty column", change("covid.train.csv", "AK,a", "AK,,a"), r"csv:1: column 4 has no name"),
    ("hw1", "a column too many", change("covid.train.csv", "0.5", "0.5,7"), r"csv:2: 8 columns, expected 7"),
    ("hw1", "a text", change("covid.train.csv", "2.5", "x"), r"csv:\d+: column \d+ \(a\) is 'x', expected a finite"),
    ("hw1", "1e308", change("covid.train.csv", "2.5", "1e308"), r"csv:\d+: column \d+ \(a\) is '1e308', expected"),
    ("hw1", "far too large", sparse("covid.train.csv", 3 << 30), r"csv: 3\.0 GB, at most 1\.0 GB are read"),
    ("hw2", "a device", lambda f: device(first(f, ".pt").relative_to(f).as_posix())(f), r"u0\.pt \(a link to /dev/z"),
    ("hw2", "a pipe", lambda f: pipe(first(f, ".pt").relative_to(f).as_posix())(f), r"u0\.pt: a pipe \(FIFO\); expec"),
    ("hw2", "160 GB", tensor(torch.zeros(1).expand(1 << 30, 39)), r"u0\.pt: claims 156\.0 GB of frames and holds 4 by"),
    ("hw2", "a packed .pt", deflated, r"u0\.pt: 600\.0 MB unpacked, at most 512\.0 MB are read"),
    ("hw2", "not a number", tensor(torch.full((20, 39), torch.nan)), r"u0\.pt: frame 0 has a value that is no finite"),
    ("hw2", "other width", tensor(torch.zeros(20, 40)), r"u0\.pt: shape \(20, 40\); expected frames x 39"),
    ("hw2", "labels of two lengths", change("train_labels.txt", "u0 0", "u0"), r"u0\.pt: 20 frames, but 19 labels"),
    ("hw2", "a label too large", change("train_labels.txt", "u0 0", "u0 3"), r"line 1: utterance u0 has class 3 at"),
    ("hw2", "a list in Latin-1", put("train_split.txt", b"\xe9\n"), r"train_split\.txt, line 1: byte 0xe9 is no UTF-8"),
    ("hw2 recordings", "a word for a phone", change("bob/1.phn", "sh", "hello"), r"1\.phn, line 2: unknown phone 'h"),
    ("hw2 recordings", "no alignment", lambda f: (f / "bob/1.phn").unlink(), r"bob/1\.wav: no alignment beside it"),
    ("hw2 recordings", "m4a", put("bob/2.m4a", b"x"), r"bob/2\.m4a: a recording as \.m4a, which is not read; convert"),
    ("hw2 recordings", "no tier", put("bob/1.TextGrid", "x"), r"bob/1\.phn: 1\.TextGrid lies beside it"),
    ("hw3", "13,000 x 13,000", put("training/0_0.png", png(13000, 13000)), r"1 of 20 images have more than 64,000,000"),
    ("hw3", "no image", put("training/0_0.png", b"x"), r"1 of 20 images cannot be read: .*0_0\.png; copy or unzip"),
    ("hw3", "PostScript", put("training/0_0.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"), r"1 of 20 images cannot be read"),
    ("hw3", "no class", put("training/photo.png", png(8, 8)), r"photo\.png: the name carries no class, expected <cl"),
    ("hw4", "numbers as texts", mapping(anna="0", bob="1"), r'mapping\.json: speaker2id has "0" for speaker anna'),
    ("hw4", "a device", lambda f: device(first(f, ".pt").name)(f), r"uttr-.*\.pt \(a link to /dev/zero\): a device"),
    ("hw4", "160 GB", tensor(torch.zeros(1).expand(1 << 30, 40)), r"uttr-.*\.pt: claims 160\.0 GB of frames and holds"),
    ("hw4", "a list that is none", put("metadata.json", '{"n_mels": 40, "speakers": []}'), r'metadata\.json: no "sp'),
    ("hw4", "broken JSON", put("metadata.json", '{"n_mels": 40,'), r"metadata\.json, line 1: no JSON"),
    ("hw4", "deep JSON", put("metadata.json", '{"n_mels": 40, "x": ' + "[" * 99_999), r"metadata\.json.*no JSON"),
    ("hw4", "a list of gigabytes", sparse("mapping.json", 2 << 30), r"mapping\.json: 2\.0 GB, at most 1\.0 GB"),
    ("hw4 recordings", "m4a", put("anna/x.m4a", b"x"), r"anna/x\.m4a: .* as \.m4a, which is not read; convert each"),
    ("hw4 recordings", "raw", put("anna/x.pcm", b"x"), r"x\.pcm: a recording as \.pcm, which has no header that says"),
    ("hw4 recordings", "an hour and more", hours, r"anna/long\.flac: more than 3,600 s, the longest recording"),
    ("hw4 recordings", "no sound", put("anna/x.mp3", b"x" * 999), r"anna/x\.mp3: cannot be read as mp3"),
    ("hw4 recordings", "no speakers", lambda f: [sound(f / "z.wav")], r"z\.wav: no speaker's folder above it; .*--sp"),
    (
        "hw4 recordings", "sessions or speakers?", sessions,
        r"it cannot be told which folders are the speakers, .* say --speaker_level 1 \(anna, bob, \.\.\.\) or 2",
    ),
    ("hw5", "one sentence for all", every_line("raw.en", "the same\n"), r"all 60 pairs share a sentence, none is left"),
    ("hw5", "no UTF-8", put("raw.zh", b"\xe9\n" * 60), r"raw\.zh, line 1: byte 0xe9 is no UTF-8; save the file"),
    ("hw5", "a bomb", bomb, r"raw\.en\.gz: 1\.3 MB, but more than 130\.9 MB of text would come of it;"),
    ("hw5", "a cut gz", cut, r"raw\.en\.gz: cut short or no gz file \(it ends too early\); copy or download it"),
    ("hw5", "lines missing", put("raw.en", "a\nb\n"), r"raw\.en has 2 lines, .*raw\.zh has 60: expected as many"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kind", "spoil", "says"), [(k, s, e) for k, _, s, e in CORPUS], ids=[f"{k}: {name}" for k, name, _, _ in CORPUS]
)
def test_one_line_at_once_and_nothing_left_behind(kind: str, spoil: Spoil, says: str, tmp_path: Path) -> None:
    make, read = SETS[kind]
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    spoil(folder)
    before = sorted(folder.rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match=says) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert sorted(folder.rglob("*")) == before
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".unpacking")] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY


@pytest.mark.parametrize("kind", SETS)
def test_the_sets_themselves_are_good(kind: str, tmp_path: Path) -> None:
    make, read = SETS[kind]
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    read(tmp_path / "set")


COUNTS: list[tuple[str, str, Spoil, str]] = [
    ("hw1", "another table", put("old.csv", "a,b\n1,2\n"), "CSV files: 3 found, 2 read, 1 left out: .*first: old.csv"),
    ("hw1", "commas at the ends", change("covid.train.csv", "\n", ",\n"), "rows: 20 found, 20 read, 0 left out"),
    ("hw2", "a file that is not named", put("feat/train/x.pt", b""), "utterances: 7 found, 6 read, 1 left out: .*x.pt"),
    ("hw2 recordings", "a text", put("bob/a.txt", "x"), r"recordings: 5 found, 4 read, 1 left out: .*bob/a.txt"),
    ("hw2 recordings", "speakers", put("bob/a.txt", "x"), r"2 speakers: anna \(2 recordings\), bob \(2 recordings\)"),
    ("hw3", "a pipe", pipe("training/1.png"), r"images: 21 found, 20 read, 1 left out: 1 no regular files; move them"),
    ("hw3", "a film", put("training/x.mp4", b""), r"images: 21 found, 20 read, 1 left out: .*\(first: training/x.mp4"),
    ("hw4", "a file that is not listed", put("x.pt", b""), "utterances: 21 found, 20 read, 1 left out: .*x.pt"),
    ("hw4 recordings", "mp3 and ogg", lambda f: [sound(f / "anna/x.mp3"), sound(f / "bob/y.ogg")], "6 found, 6 read"),
    ("hw4 recordings", "a loop", lambda f: (f / "bob" / "x").symlink_to(f), "5 found, 4 read, 1 left out: 1 no re"),
    ("hw4 recordings", "a text", put("bob/a.txt", "x"), r"1 left out: 1 no sounds \(\.txt\) \(first: bob/a.txt\)"),
    ("hw5", "another table", put("more.tsv", "a\tb\n"), r"tables .*: 1 found, 0 read, 1 left out: .*first: more.tsv"),
    ("hw5", "an empty line", change("raw.en", "sentence number 3 of them", ""), r"1 with an empty .*raw.en, pair 4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "add", "says"), [(k, s, e) for k, _, s, e in COUNTS], ids=[f"{k}: {name}" for k, name, _, _ in COUNTS]
)
def test_what_is_left_out_is_said(
    kind: str,
    add: Spoil,
    says: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, read = SETS[kind]
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    add(folder)
    with warnings.catch_warnings(action="ignore"), caplog.at_level("INFO"):
        read(folder)
    assert re.search(says, caplog.text + capsys.readouterr().err), caplog.text


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "training" / "loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"holds images .* beside a folder with images"):
        fit(FoodData, image_size=8)(tmp_path)


@pytest.mark.parametrize("kind", [CovidData, PhonemeData, FoodData, SpeakerData, TranslationData])
def test_describe(kind: type[HomeworkData], tmp_path: Path) -> None:
    """Of a folder itself, and of the root with it."""
    folder = tmp_path / kind.homework / "mine"
    folder.mkdir(parents=True)
    {CovidData: tables, PhonemeData: frames, FoodData: images, SpeakerData: mels, TranslationData: many}[kind](folder)
    told = kind.describe(folder)
    assert any("left out" in line for line in told)
    assert any("to train on" in line for line in told)
    assert len(kind.describe(tmp_path)) == len(told)
