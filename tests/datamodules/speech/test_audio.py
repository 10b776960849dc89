"""datamodules/speech/audio.py: samples as they were written, features as their definitions say."""

import math
import struct
import warnings
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct
from scipy.signal import get_window

from datamodules.errors import DataError
from datamodules.speech.audio import frame_centres, log_mel, mfcc, normalise, rate_of, read_audio, warn_of_rates


def sound(count: int = 8000, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A tone that rises, over noise; float32 in -1 ... 1."""
    t = np.arange(count) / rate
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.3 * np.sin(2 * np.pi * (300 + 400 * t) * t) + 0.02 * noise).astype(np.float32)


def written(path: Path, samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype)
    return path


class TestRead:
    @pytest.mark.parametrize("ending", ["wav", "flac"])
    def test_as_written(self, tmp_path: Path, ending: str) -> None:
        found = read_audio(written(tmp_path / f"a.{ending}", sound()))
        assert found.dtype == np.float32
        assert np.abs(found - sound()).max() < 1 / 32000  # 16 bit

    def test_by_hand(self, tmp_path: Path) -> None:
        """The bytes of a wav file, not what the same library wrote."""
        steps = np.arange(-500, 500, dtype="<i2")
        chunk = struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
        body = b"WAVEfmt " + chunk + b"data" + struct.pack("<I", 2000) + steps.tobytes()
        (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
        assert np.array_equal(read_audio(tmp_path / "a.wav"), steps / np.float32(32768))
        assert rate_of(tmp_path / "a.wav") == 16000

    def test_stereo_is_mixed_down(self, tmp_path: Path) -> None:
        both = np.stack([sound(seed=1), sound(seed=2)], 1)
        found = read_audio(written(tmp_path / "a.wav", both, subtype="FLOAT"))
        assert np.allclose(found, both.mean(1), atol=1e-7)

    @pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
    def test_another_rate_is_resampled(self, tmp_path: Path, rate: int) -> None:
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        path = written(tmp_path / "a.wav", tone, rate, "FLOAT")
        with pytest.warns(UserWarning, match=rf"a\.wav: {rate} Hz, resampled to 16000 Hz") as caught:
            found = read_audio(path)
        assert len(caught) == 1
        assert (len(found), found.dtype) == (16000, np.float32)
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
        assert np.abs(found - expected)[500:-500].max() < 2e-3

    def test_many_are_said_once(self, tmp_path: Path) -> None:
        paths = [
            written(tmp_path / f"{n}.wav", sound(), rate) for n, rate in enumerate((16000, 8000, 16000, 22050, 8000))
        ]
        with pytest.warns(UserWarning, match=r"1\.wav and 2 more: 8000 Hz, resampled to 16000 Hz") as caught:
            warn_of_rates(paths)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_rates(paths[::2][:2])
            read_audio(paths[1], warn=False)

    def test_empty_and_broken(self, tmp_path: Path) -> None:
        whole = written(tmp_path / "whole.flac", sound()).read_bytes()
        cases = {
            "empty.wav": (b"", "empty; copy"),
            "page.wav": (b"<html>" * 100, "cannot be read as wav .*; copy or unzip it again, or move it away"),
            "head.flac": (whole[:20], "cannot be read"),
            "cut.flac": (whole[: len(whole) // 2], "cannot be read"),
        }
        for name, (data, message) in cases.items():
            (tmp_path / name).write_bytes(data)
            with pytest.raises(DataError, match=f"{name}: {message}"):
                read_audio(tmp_path / name)
        with pytest.raises(DataError, match=r"page\.wav"):
            rate_of(tmp_path / "page.wav")
        with pytest.raises(FileNotFoundError):
            read_audio(tmp_path / "none.wav")

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_no_finite_number(self, tmp_path: Path, bad: float) -> None:
        samples = sound()
        samples[77] = bad
        with pytest.raises(DataError, match=r"a\.wav: sample 77 is no finite number"):
            read_audio(written(tmp_path / "a.wav", samples, subtype="FLOAT"))

    @pytest.mark.parametrize(("count", "rate"), [(0, 16000), (399, 16000), (0, 8000), (199, 8000)])
    def test_too_short(self, tmp_path: Path, count: int, rate: int) -> None:
        with pytest.raises(DataError, match=r"a\.wav: \d+ samples \(\d+ ms\), expected 25 ms or more"):
            read_audio(written(tmp_path / "a.wav", sound(count), rate), warn=False)
        assert len(read_audio(written(tmp_path / "b.wav", sound(400)))) == 400


def mfcc_by_definition(samples: np.ndarray) -> np.ndarray:
    """(T, 39) in float64, frame by frame."""
    mirrored = np.pad(samples.astype(np.float64) * 32768, 400, mode="symmetric")
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    corners = np.linspace(mel(20), mel(8000), 25)
    at = mel(np.arange(256) * 16000 / 512)
    bands = np.array(
        [np.interp(at, corners[k : k + 3], [0, 1, 0], left=0, right=0) for k in range(23)]
    )  # triangles in mel
    povey = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    static = []
    for centre in frame_centres((len(samples) + 80) // 160).astype(int):
        x = mirrored[400 + centre - 200 :][:400]
        x = x - x.mean()
        x = (x - 0.97 * np.concatenate([x[:1], x[:-1]])) * povey
        power = np.abs(np.fft.rfft(x, 512)[:256]) ** 2
        log = np.log(np.maximum(bands @ power, np.finfo(np.float32).eps))
        static.append(dct(log, norm="ortho")[:13] * lifter)
    x = np.pad(np.array(static), ((4, 4), (0, 0)), mode="edge")

    def delta(x: np.ndarray) -> np.ndarray:
        return (x[3:-1] - x[1:-3] + 2 * x[4:] - 2 * x[:-4]) / 10

    return np.hstack([x[4:-4], delta(x)[2:-2], delta(delta(x))])


class TestMfcc:
    @pytest.mark.parametrize("count", [400, 479, 480, 8000, 8079, 8080])
    def test_as_defined(self, count: int) -> None:
        found = mfcc(sound(count))
        assert found.shape == ((count + 80) // 160, 39)
        assert found.dtype == np.float32
        assert np.abs(found - mfcc_by_definition(sound(count))).max() < 5e-3  # of values up to 100

    def test_as_defined_on_real_speech(self, tmp_path: Path, real_data) -> None:
        with ZipFile(real_data("hw2_phoneme") / "timit_sample_13spk.zip") as zipped:
            names = sorted(name for name in zipped.namelist() if name.endswith(".wav"))[::26]
            for name in names:
                samples = read_audio(Path(zipped.extract(name, tmp_path)))
                expected = mfcc_by_definition(samples)
                assert np.abs(mfcc(samples) - expected).max() < 5e-3
                assert np.abs(normalise(mfcc(samples)) - normalise(expected)).max() < 5e-4

    def test_silence_and_repetition(self) -> None:
        assert np.isfinite(mfcc(np.zeros(1600, np.float32))).all()
        assert np.array_equal(mfcc(sound()), mfcc(sound()))  # no dither

    def test_a_click_lies_in_the_frame_of_its_centre(self) -> None:
        """The frame whose 10 ms hold the click has the greatest energy."""
        for place in (1000, 1290, 4003):
            samples = sound() * 1e-3
            samples[place] = 1
            centres = frame_centres(len(samples) // 160)
            loudest = mfcc(samples)[:, 0].argmax()
            assert abs(centres[loudest] - place) <= 80


class TestNormalise:
    def test_mean_and_deviation(self) -> None:
        x = np.random.default_rng(0).normal(50, 7, (200, 39))
        x[:, 3], x[:, 4] = 5.1, 0
        found = normalise(x.astype(np.float32))
        assert not found[:, 3:5].any()
        others = np.delete(found, [3, 4], 1).astype(np.float64)
        assert np.abs(others.mean(0)).max() < 1e-6
        assert np.abs(others.std(0, ddof=1) - 1).max() < 1e-5
        assert not normalise(x[:1]).any()

    def test_as_the_course_did(self, real_data) -> None:
        """Deviation 1 with T - 1 below it, as in its own files."""
        import io

        import torch

        with ZipFile(real_data("hw2_phoneme") / "libriphone_feature_sample_unlabelled.zip") as zipped:
            name = next(name for name in zipped.namelist() if name.endswith(".pt"))
            x = torch.load(io.BytesIO(zipped.read(name)), weights_only=True).numpy()
        assert np.abs(normalise(x) - x).max() < 1e-5


def log_mel_by_definition(samples: np.ndarray) -> np.ndarray:
    """(T, 40) in float64, frame by frame and band by band."""
    mirrored = np.pad(samples.astype(np.float64), 200, mode="reflect")
    window = get_window("hann", 400)
    mel = lambda f: 2595 * math.log10(1 + f / 700)  # noqa: E731
    step = (mel(8000) - mel(50)) / 41
    corners = [700 * (10 ** ((mel(50) + k * step) / 2595) - 1) for k in range(42)]
    out = np.empty((1 + len(samples) // 160, 40))
    for t in range(len(out)):
        power = np.abs(np.fft.rfft(mirrored[160 * t :][:400] * window)) ** 2
        for k in range(40):
            low, peak, high = corners[k : k + 3]
            weights = [max(0, min((f - low) / (peak - low), (high - f) / (high - peak))) for f in np.arange(201) * 40.0]
            out[t, k] = math.log(max(power @ weights, 1e-9))
    return out


class TestLogMel:
    @pytest.mark.parametrize("count", [400, 1601, 4000])
    def test_as_defined(self, count: int) -> None:
        found = log_mel(sound(count))
        assert found.shape == (1 + count // 160, 40)
        assert found.dtype == np.float32
        assert np.abs(found - log_mel_by_definition(sound(count))).max() < 1e-3

    def test_silence_is_the_floor(self) -> None:
        assert (log_mel(np.zeros(1600, np.float32)) == np.float32(math.log(1e-9))).all()
        assert round(float(log_mel(np.zeros(1600, np.float32)).min()), 4) == -20.7233


@settings(max_examples=30)
@given(count=st.integers(400, 3000))
def test_frames_cover_the_sound(count: int) -> None:
    frames = len(mfcc(sound(count)))
    centres = frame_centres(frames)
    assert len(centres) == frames
    assert centres[0] == 80
    assert abs(count - (centres[-1] + 80)) <= 80  # the last one ends within half a hop of the end
