"""datamodules/images/decoded.py: pixels as Pillow and torchvision give them, and a map that is whole and built once."""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import Parallel
from PIL import Image, ImageOps

from datamodules.errors import DataError
from datamodules.files import cache, places, progress
from datamodules.images import decoded
from datamodules.images.decoded import decode, pixels

PROJECT = Path(__file__).resolve().parents[3]
BILINEAR = Image.Resampling.BILINEAR
BEST: dict[str, dict[str, int]] = {"JPEG": {"quality": 98, "subsampling": 0}, "PNG": {}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the cache; no test touches the project's own."""
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def picture(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    """Smooth colours with an edge, so that neither turning nor scaling goes unseen."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 20, 20), (2, 3, width // 3, height // 2))
    return image


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def some(folder: Path, count: int = 5, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        picture(number).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(first, first + count)]


def plain(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((size, size), BILINEAR))


def right(paths: list[Path], size: int = 16) -> np.ndarray:
    return np.stack([plain(Image.open(path), size) for path in paths])


def maps(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoded, "_fill", fail)


class TestPixels:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
    @pytest.mark.parametrize("size", [24, 48, 100])
    def test_as_pillow(self, form: str, size: int) -> None:
        data = saved(picture(), form)
        assert np.array_equal(pixels(data, size), plain(Image.open(io.BytesIO(data)), size))

    @given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 64))
    def test_any_shape(self, width: int, height: int, size: int) -> None:
        image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
        assert np.array_equal(pixels(saved(image, "PNG"), size), plain(image, size))

    def test_as_torchvision_on_real_images(self, tmp_path: Path, real_data) -> None:
        transforms = pytest.importorskip("torchvision.transforms")
        with ZipFile(real_data("hw3_food") / "food10_train_val.zip") as zipped:
            chosen = sorted(name for name in zipped.namelist() if name.startswith("validation/"))[::15]
            paths = [Path(zipped.extract(name, tmp_path)) for name in chosen]
        resize = transforms.Resize((128, 128))
        full = np.stack([np.asarray(resize(Image.open(path).convert("RGB"))) for path in paths])
        assert np.array_equal(decode(paths, 128).images, full)  # too small for JPEG's own scaling to set in

        resize = transforms.Resize((32, 32))
        full = np.stack([np.asarray(resize(Image.open(path).convert("RGB"))) for path in paths])
        error = np.abs(decode(paths, 32).images.astype(float) - full).mean((1, 2, 3))
        assert 0 < error.mean() < 1  # here it does
        assert error.max() < 4  # one image full of fine leaves

    @pytest.mark.parametrize("scale", [2, 3, 4, 8, 9])
    def test_large_jpeg_is_scaled_while_it_is_decoded(self, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        monkeypatch.setattr(decoded, "_rgb", lambda image: sizes.append(image.size) or image.convert("RGB"))
        image = picture(3, width=64 * scale + 5, height=64 * scale + 31)
        data = saved(image, "JPEG", quality=92)
        error = np.abs(pixels(data, 32).astype(float) - plain(Image.open(io.BytesIO(data)), 32)).mean()
        assert error < 3  # of hard edges in strong colours, which JPEG stores at half the resolution
        assert 64 <= min(sizes[0]) < 64 * 2 + 16  # never below twice the wanted size

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("form", ["JPEG", "PNG"])
    def test_exif_turns(self, orientation: int, form: str) -> None:
        """As a camera writes it: the tag says where row 0 and column 0 of the file are on the upright picture."""
        upright = np.asarray(picture(1, 64, 48))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: upright.transpose(1, 0, 2)[::-1],
            7: upright.transpose(1, 0, 2)[::-1, ::-1],
            8: upright.transpose(1, 0, 2)[:, ::-1],
        }[orientation]
        data = saved(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **BEST[form])
        error = np.abs(pixels(data, 32).astype(float) - plain(Image.fromarray(upright), 32))
        assert error.mean() < (3 if form == "JPEG" else 0.01)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of the plain reading
    def test_broken_exif_is_no_reason_to_refuse(self) -> None:
        data = saved(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x01" * 30)
        assert np.array_equal(pixels(data, 24), plain(Image.open(io.BytesIO(data)), 24))

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])  # Pillow 12 cannot read its own TIFF in YCbCr
    def test_modes_without_transparency(self, mode: str) -> None:
        data = saved(picture().convert(mode), "TIFF")
        assert np.array_equal(pixels(data, 20), plain(Image.open(io.BytesIO(data)), 20))

    def test_cmyk_jpeg(self) -> None:
        data = saved(picture().convert("CMYK"), "JPEG", quality=95)
        assert np.abs(pixels(data, 20).astype(float) - plain(picture(), 20)).mean() < 4

    def test_transparent_is_white(self) -> None:
        image = picture().convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, 30, 40))
        image.paste((0, 0, 0, 128), (30, 0, 45, 40))
        for data in (saved(image, "PNG"), saved(image, "WEBP", lossless=True)):
            found = pixels(data, 60)
            assert (found[:, :29] == 255).all()
            assert (abs(found[:, 32:43].astype(int) - 127) <= 1).all()
            assert np.array_equal(found[:, 48:], plain(image, 60)[:, 48:])

    @pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA"])
    def test_other_ways_to_be_transparent(self, mode: str) -> None:
        if mode == "LA":
            data = saved(Image.new("LA", (8, 8), (0, 0)), "PNG")
        else:
            data = saved(Image.new(mode, (8, 8), 0), "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
        assert (pixels(data, 4) == 255).all()

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_16_bit_is_scaled(self, form: str) -> None:
        ramp = np.repeat(np.linspace(0, 65535, 32).astype(np.uint16)[None], 32, 0)
        found = pixels(saved(Image.fromarray(ramp), form), 32)
        assert np.array_equal(found, np.repeat((ramp / 257).round().astype(np.uint8)[:, :, None], 3, 2))

    @pytest.mark.parametrize(
        ("values", "top"), [(np.float32, 1), (np.float32, 255), (np.int32, 65535), (np.int32, 10**6)]
    )
    def test_32_bit_is_scaled(self, values: type, top: int) -> None:
        ramp = np.repeat(np.linspace(0, top, 32).astype(values)[None], 32, 0)
        found = pixels(saved(Image.fromarray(ramp), "TIFF"), 32)
        assert np.abs(found - np.linspace(0, 255, 32)[None, :, None]).max() <= 1

    @pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_first_frame_of_several(self, form: str) -> None:
        frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "blue", "green")]
        found = pixels(saved(frames[0], form, save_all=True, append_images=frames[1:]), 6)
        assert np.abs(found.astype(int) - [255, 0, 0]).max() < 4

    def test_many_pixels_do_not_warn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # the picture has 2400; from 4000 on it is refused
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pixels(saved(picture(), "PNG"), 20).any()


def bomb() -> bytes:
    """A PNG of 2e9 pixels, in words."""
    header = struct.pack(">IIBBBBB", 50000, 40000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


class TestBadFiles:
    @pytest.fixture
    def paths(self, tmp_path: Path) -> list[Path]:
        paths = some(tmp_path / "data")
        jpeg = saved(picture(7), "JPEG")
        bad = {"cut.jpg": jpeg[: len(jpeg) // 2], "empty.jpg": b"", "page.PNG": b"<html>", "bomb.png": bomb()}
        for name, data in bad.items():
            (tmp_path / "data" / name).write_bytes(data)
        (tmp_path / "data" / "UPPER.JPG").write_bytes(jpeg)
        return [*paths[:2], *(tmp_path / "data" / name for name in bad), tmp_path / "data" / "UPPER.JPG", *paths[2:]]

    def test_they_are_named_once_and_skipped(self, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(2):
            with pytest.warns(UserWarning, match=r"4 of 10 images cannot be read: .*cut\.jpg, .*bomb\.png; ") as caught:
                found = decode(paths, 16)
            assert len(caught) == 1
            assert found.good.tolist() == [True, True, False, False, False, False, True, True, True, True]
            assert not found.images[~found.good].any()
            assert np.array_equal(
                found.images[found.good], right([p for p, ok in zip(paths, found.good, strict=True) if ok])
            )
            no_decoding(monkeypatch)  # the second time nobody tries them again

    def test_five_names_are_enough(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{n}.jpg" for n in range(8)]
        for path in paths:
            path.touch()
        with pytest.warns(UserWarning, match=r"8 of 8 .*/4\.jpg and 3 more; they are skipped") as caught:
            decode(paths, 8)
        assert "5.jpg" not in str(caught[0].message)

    def test_refused(self, paths: list[Path], folder: Path) -> None:
        for _ in range(2):
            with pytest.raises(DataError, match=r"4 of 10 .*cut\.jpg, .*; copy or unzip them again, or move them away"):
                decode(paths, 16, "refuse")
            assert list(folder.glob("*.part")) == []
        good = [*paths[:2], *paths[6:]]
        assert np.array_equal(decode(good, 16, "refuse").images, right(good))

    def test_a_file_that_is_gone_is_another_matter(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            decode([*some(tmp_path), tmp_path / "gone.png"], 16)
        assert caught.value.filename == str(tmp_path / "gone.png")


class TestMap:
    def test_rows_are_files(self, tmp_path: Path, folder: Path) -> None:
        paths = some(tmp_path)[::-1]
        found = decode(paths, 16)
        assert np.array_equal(found.images, right(paths))
        assert found.good.all()
        assert (found.images.dtype, found.images.shape) == (np.uint8, (5, 16, 16, 3))
        assert isinstance(found.images, np.memmap)
        assert not found.images.flags.writeable
        assert np.array_equal(np.load(maps(folder)[0], mmap_mode="r"), found.images)

    def test_no_files(self) -> None:
        assert decode([], 16).images.shape == (0, 16, 16, 3)

    def test_workers_do_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = some(tmp_path, 9)
        paths[4].write_bytes(b"no image")
        monkeypatch.setattr(decoded, "SHARE", 1)
        monkeypatch.setattr(decoded, "CHUNK", 2)
        monkeypatch.setattr(decoded, "cpu_count", lambda: 2)
        asked = []
        monkeypatch.setattr(
            decoded, "Parallel", lambda n_jobs, **rest: asked.append(n_jobs) or Parallel(n_jobs, **rest)
        )
        with pytest.warns(UserWarning, match="1 of 9"):
            found = decode(paths, 16)
        assert np.array_equal(found.images[found.good], right(paths[:4] + paths[5:]))
        assert asked == [2]

    def test_opening_reads_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = some(tmp_path / "data")
        decode(paths, 16)
        monkeypatch.setattr(cache, "_content", lambda name: pytest.fail(f"{name} is read again"))
        no_decoding(monkeypatch)
        assert np.array_equal(decode(paths, 16).images, right(paths))

    def test_a_copy_elsewhere_finds_the_map(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = some(tmp_path / "data")
        decode(paths, 16)
        no_decoding(monkeypatch)
        os.utime(paths[0])
        assert np.array_equal(decode(paths, 16).images, right(paths))
        (tmp_path / "data").rename(tmp_path / "copy")
        copies = [path.rename(path.with_name(f"other {path.name}")) for path in sorted((tmp_path / "copy").iterdir())]
        assert np.array_equal(decode(copies, 16).images, right(copies))
        assert len(maps(folder)) == 1

    def test_a_changed_file_of_the_same_name_size_and_time_is_seen(self, tmp_path: Path, folder: Path) -> None:
        """unzip sets the time of all files to what the archive says."""
        paths = some(tmp_path)
        paths = [path.rename(path.with_suffix(".bmp")) for path in paths]
        for number, path in enumerate(paths):
            picture(number).save(path)
            os.utime(path, (1e9, 1e9))
        decode(paths, 16)
        size = paths[2].stat().st_size
        picture(99).save(paths[2])
        os.utime(paths[2], (1e9, 1e9))
        assert paths[2].stat().st_size == size
        assert np.array_equal(decode(paths, 16).images, right(paths))
        assert len(maps(folder)) == 2

    def test_order_size_and_choice_have_maps_of_their_own(self, tmp_path: Path, folder: Path) -> None:
        paths = some(tmp_path)
        for chosen, size in ((paths, 16), (paths[::-1], 16), (paths[1:], 16), (paths, 8)):
            assert np.array_equal(decode(chosen, size).images, right(chosen, size))
        assert len(maps(folder)) == 4

    @pytest.mark.parametrize("damage", [b"", b"\0" * 100])
    def test_a_cut_map_or_index_is_built_anew(self, damage: bytes, tmp_path: Path, folder: Path) -> None:
        paths = some(tmp_path)
        decode(paths, 16)
        for path in folder.iterdir():
            path.write_bytes(damage)
        assert np.array_equal(decode(paths, 16).images, right(paths))

    def test_a_full_disk_says_where_and_leaves_nothing(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = some(tmp_path)

        def full(*_) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(decoded, "_fill", full)
            with pytest.raises(OSError, match="No space left") as caught:
                decode(paths, 16)
        assert Path(caught.value.filename).parent == folder
        assert maps(folder) == list(folder.glob("*.part")) == []
        assert np.array_equal(decode(paths, 16).images, right(paths))

    def test_a_cache_that_cannot_be_made_says_where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "file"))
        with pytest.raises(OSError, match=r"Not a directory|exists") as caught:
            decode(some(tmp_path), 16)
        assert str(tmp_path / "file") in caught.value.filename

    def test_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LEEML_CACHE")
        assert places.cache_folder() == PROJECT / ".cache"
        monkeypatch.setenv("LEEML_CACHE", "~/somewhere")
        assert places.cache_folder() == Path.home() / "somewhere"


CHILD = """
import sys
from datamodules.files import cache, places
from datamodules.images import decoded
def say(text):
    print(text, flush=True)
    return sys.stdin.readline()
{}
found = decoded.decode(sys.argv[1:], 16)
say(f"done {{int(found.images.sum())}}")
"""

# stops with some rows written: the pixels of the files are there, their end is not
HALF_WAY = """
fill = decoded._fill
def half(part, offset, size, names):
    say("half") if offset > 1000 else None
    return fill(part, offset, size, names)
decoded._fill, decoded.CHUNK = half, 2
"""

BUILDS = """
build = decoded._build
def told(*args):
    say("builds")
    build(*args)
decoded._build = told
"""

WAITS = """
class Lock(cache.FileLock):
    def __enter__(self):
        print("waits", flush=True)
        return super().__enter__()
cache.FileLock = Lock
"""


def child(code: str, paths: list[Path]) -> subprocess.Popen[str]:
    """A process that says how far it is, and goes on when told to."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CHILD.format(code), *map(str, paths)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=PROJECT)


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


def test_two_processes_build_once(tmp_path: Path, folder: Path) -> None:
    paths = some(tmp_path)
    done = f"done {right(paths).sum()}"
    with child(BUILDS, paths) as first:
        assert hear(first) == "builds"
        with child(BUILDS + WAITS, paths) as second:
            assert hear(second) == "waits"
            go_on(first)
            assert hear(first) == done
            assert hear(second) == done  # without "builds"
            go_on(second)
        go_on(first)
    assert len(maps(folder)) == 1
    assert list(folder.glob("*.part")) == []


def test_a_kill_half_way_leaves_nothing_wrong(tmp_path: Path, folder: Path) -> None:
    paths = some(tmp_path)
    with child(HALF_WAY, paths) as process:
        assert hear(process) == "half"
        process.send_signal(signal.SIGKILL)
    assert maps(folder) == []
    assert len(list(folder.glob("*.part"))) == 1
    assert np.array_equal(decode(paths, 16).images, right(paths))
    assert list(folder.glob("*.part")) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar(progress.tqdm):
        def update(self, n: float | None = 1) -> None:
            if self.desc == "decoding images":
                raise KeyboardInterrupt

    monkeypatch.setattr(decoded, "SHARE", 1)
    monkeypatch.setattr(decoded, "CHUNK", 1)
    monkeypatch.setattr(decoded, "cpu_count", lambda: 2)
    paths = some(tmp_path, 20)
    monkeypatch.setattr(progress, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        decode(paths, 16)
    assert maps(folder) == list(folder.glob("*.part")) == []


def test_the_workers_import_neither_torch_nor_lightning() -> None:
    code = "import sys, datamodules.images.decoded; print({'torch', 'lightning', 'torchvision'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).strip() == "set()"


def test_turning_is_what_pillow_does() -> None:
    """The brute force above and ImageOps agree on what the tag means."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), "PNG", exif=exif)
    assert np.array_equal(pixels(data, 30), plain(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), 30))


@pytest.fixture
def blank(tmp_path: Path) -> Callable[[str, int], Path]:
    def write(name: str, side: int) -> Path:
        Image.new("L", (side, side)).save(tmp_path / name)
        return tmp_path / name

    return write


def test_far_too_large_images_are_named_with_the_limit(
    blank: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.images.decoded.LARGEST", 90**2)
    monkeypatch.setattr("datamodules.images.decoded.LARGEST_JPEG", 150**2)
    paths = [blank("a.png", 90), blank("b.png", 91), blank("c.jpg", 150), blank("d.jpg", 151)]
    with pytest.warns(
        UserWarning, match=r"2 of 4 images have more than 8,100 pixels \(JPEG: 22,500\) or 256.0 MB: .*b"
    ):
        found = decode(paths, 8)
    assert found.good.tolist() == [True, False, True, False]
    with pytest.raises(DataError, match=r"2 of 4 images have more than .*; make them smaller"):
        decode(paths, 8, "refuse")


def test_heic_is_read(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((64, 64, 3), 130, np.uint8))
    grey.save(tmp_path / "a.heic")
    found = decode([tmp_path / "a.heic"], 32)
    assert found.good.all()
    assert np.abs(found.images.astype(int) - 130).max() < 8


def test_postscript_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.warns(UserWarning, match=r"1 of 1 images cannot be read"):
        assert not decode([tmp_path / "a.jpg"], 8).good.any()
