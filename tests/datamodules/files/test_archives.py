"""datamodules/files/archives.py: what is refused before a byte is written, what is unpacked whole."""

import gzip
import io
import random
import resource
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from datamodules.errors import DataError
from datamodules.files import archives
from datamodules.files.archives import unpack

BODY = random.Random(0).randbytes(200_000)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "member",
    ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "C:evil.txt", "..\\evil.txt", "//host/x/e"],
)
def test_zip_with_a_path_outside_leaves_nothing(tmp_path: Path, member: str) -> None:
    archive = make_zip(tmp_path / "bad.zip", {"good.txt": b"good", member: b"evil"})
    with pytest.raises(DataError, match="outside the folder") as caught:
        unpack(archive, tmp_path / "data")
    assert str(archive) in str(caught.value)
    assert repr(member) in str(caught.value)
    assert names(tmp_path) == ["bad.zip"]


def test_zip_with_a_link_leaves_nothing(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr("good.txt", b"good")
        zipped.writestr(link, b"/etc/passwd")
    with pytest.raises(DataError, match=r"bad\.zip: its member 'link' is a link"):
        unpack(tmp_path / "bad.zip", tmp_path / "data")
    assert names(tmp_path) == ["bad.zip"]


def test_broken_zips_leave_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good.txt": b"good", "b.bin": BODY})
    data = archive.read_bytes()
    middle = data.index(b"b.bin") + 30  # inside the compressed bytes of the second member
    for broken in (b"no zip", data[:-30], data[:middle] + b"\xff" * 20 + data[middle + 20 :]):
        archive.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.zip: cannot be unpacked"):
            unpack(archive, tmp_path)
        assert names(tmp_path) == ["a.zip"]


def test_unpacking_overwrites_no_file(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"new.txt": b"new", "train.csv": b"id,x\n"})
    (tmp_path / "train.csv").write_bytes(b"id,x\r\n")
    with pytest.raises(DataError, match=r"train\.csv: differs from the one in"):
        unpack(archive, tmp_path)
    assert names(tmp_path) == ["a.zip", "train.csv"]
    assert (tmp_path / "train.csv").read_bytes() == b"id,x\r\n"
    (tmp_path / "train.csv").unlink()
    assert unpack(archive, tmp_path) == [tmp_path / "new.txt", tmp_path / "train.csv"]
    assert (tmp_path / "train.csv").read_bytes() == b"id,x\n"


@pytest.fixture(params=["zip", "tar.gz"])
def zeros(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An archive of 300 kB that says it holds 300 MB."""
    path = tmp_path / f"bomb.{request.param}"
    if request.param == "zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped,
            zipped.open("z.wav", "w") as out,
        ):
            for _ in range(300):
                out.write(bytes(1 << 20))
    else:
        with gzip.open(path, "wb", 1) as out:
            member = tarfile.TarInfo("z.wav")
            member.size = 300 << 20
            out.write(member.tobuf())
            for _ in range(300):
                out.write(bytes(1 << 20))
            out.write(bytes(1024))
    return path


def test_what_far_more_would_come_of_is_refused_unwritten(zeros: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bomb.* but 300\.0 MB or more would come of it, more than 100 times as much"):
        unpack(zeros, tmp_path / "out")
    assert names(tmp_path) == [zeros.name]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_one_name_twice(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for text in ("one", "two"):
                zipped.writestr("a/x.txt", text)
    else:
        with tarfile.open(path, "w") as tar:
            for text in (b"one", b"two"):
                member = tarfile.TarInfo("a/x.txt")
                member.size = 3
                tar.addfile(member, io.BytesIO(text))
    with pytest.raises(DataError, match=r"'a/x\.txt' stands in it twice; nothing was unpacked"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == [path.name]


def test_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    """On macOS and Windows the second would overwrite the first."""
    archive = make_zip(tmp_path / "a.zip", {"a/x.txt": b"one", "A/X.txt": b"two"})
    with pytest.raises(DataError, match=r"'A/X\.txt' stands in it twice"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(tmp_path / "a.zip", {"b.bin": BODY})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"a\.zip: 195\.3 kB will come of it, but .* has 1000 bytes left"):
        unpack(archive, tmp_path / "deep" / "out")
    assert names(tmp_path) == ["a.zip"]


def test_a_header_that_claims_gigabytes(tmp_path: Path) -> None:
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 3 << 30
    with gzip.open(tmp_path / "a.tgz", "wb") as out:
        out.write(member.tobuf(tarfile.USTAR_FORMAT) + bytes(100_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"cannot be unpacked \(.*a header of 3\.0 GB, at most 16\.0 MB are read"):
        unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "a.zip").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"a\.zip \(a link to /dev/zero\): a device; expected a regular file"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_both_kinds_hold_the_same(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", {"x/b.bin": BODY, "c.txt": b"c"})
    with tarfile.open(tmp_path / "a.tar.bz2", "w:bz2") as tar:
        for name, data in (("./x/b.bin", BODY), ("./c.txt", b"c")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for kind in ("zip", "tar.bz2"):
        out = tmp_path / kind
        assert unpack(tmp_path / f"a.{kind}", out) == [out / "x" / "b.bin", out / "c.txt"]
        assert (out / "x" / "b.bin").read_bytes() == BODY
        assert names(out) == ["c.txt", "x", "x/b.bin"]
        assert sorted(archives.names_in(tmp_path / f"a.{kind}"))[-1].endswith("x/b.bin")
