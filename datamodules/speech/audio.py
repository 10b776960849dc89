"""Sound files as samples, and the frames made of them: MFCCs for phones (HW2), log-mel for speakers (HW4).

Imports neither torch nor Lightning at its head: workers that only need MFCCs import this file.
"""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path

import kaldi_native_fbank as kaldi
import numpy as np
import soundfile
from scipy.signal import resample_poly

from datamodules.errors import DataError, and_more
from datamodules.files.reading import require_regular

# what libsndfile reads of what recordings lie in; .raw has no header that says how
ENDINGS = {
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64"),
    *(".rf64", ".sph", ".nist", ".voc"),
}
# recordings that it does not read, each of which would be missed
FOREIGN = {
    *(".m4a", ".aac", ".mp4", ".m4b", ".wma", ".amr", ".3gp", ".ac3", ".ape", ".wv", ".mka", ".webm", ".mov", ".mkv"),
    *(".avi", ".ra", ".spx", ".shn", ".raw", ".pcm"),
}
LONGEST = 3600  # seconds of a recording: an hour of features and what they are made of take 1 GB
SLOWEST, FASTEST = 1000, 768_000  # samples per second
BLOCK = 1 << 20  # samples of each channel read at once
RATE = 16000  # samples per second
HOP, WINDOW = 160, 400  # samples: 10 ms, 25 ms
FULL_SCALE = 1 << 15  # Kaldi counts in steps of 16 bit
MELS, LOWEST, HIGHEST, FLOOR = 40, 50.0, 8000.0, 1e-9  # bands, Hz, Hz and power of HW4's features


def rate_of(path: Path) -> int:
    """Samples per second as the file's header says.

    Raises:
        DataError: no sound file.
    """
    require_regular(path)
    with path.open("rb") as file:
        try:
            return _checked_rate(path, int(soundfile.info(file).samplerate))
        except soundfile.LibsndfileError as error:
            raise _broken(path, error) from error


def warn_of_rates(paths: Iterable[Path], rate: int = RATE) -> None:
    """Say once that some of the files will be resampled; for those who then read many with warn=False."""
    others = [(path, found) for path in paths if (found := rate_of(path)) != rate]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(f"{others[0][0]}{more}: {others[0][1]} Hz, resampled to {rate} Hz", stacklevel=2)


def refuse_foreign(paths: Iterable[Path]) -> None:
    """Refuse recordings in formats that are not read.

    Raises:
        DataError: names the first and says how to convert it.
    """
    foreign = [path for path in paths if path.suffix.lower() in FOREIGN]
    if not foreign:
        return
    first = foreign[0]
    how = "which has no header that says its rate" if first.suffix.lower() in (".raw", ".pcm") else "which is not read"
    raise DataError(
        f"{first}{and_more(foreign)}: a recording as {first.suffix}, {how}; convert each to wav or flac (ffmpeg -i "
        f"{first.name} {first.stem}.wav), or move it away"
    )


def read_audio(path: Path, rate: int = RATE, warn: bool = True) -> np.ndarray:
    """(N,) float32 in -1 ... 1, stereo mixed down; another rate is resampled (a loud file may then overshoot 1).

    Args:
        path: wav, flac, mp3, ogg, whatever libsndfile reads.
        rate: Samples per second wanted.
        warn: Say in a warning that this file is resampled.

    Raises:
        DataError: no sound file, a sample that is no number, less than one window of 25 ms, or more than an hour.
        OSError: the file cannot be read.
    """
    require_regular(path)
    parts: list[np.ndarray] = []
    with path.open("rb") as file:
        try:
            with soundfile.SoundFile(file) as sound:
                found = _checked_rate(path, int(sound.samplerate))
                block = max(1, BLOCK // sound.channels)
                # counted while reading: what a header says need not be so
                while len(part := sound.read(block, dtype="float32", always_2d=True)):
                    parts.append(part.mean(1))
                    if sum(map(len, parts)) > LONGEST * found:
                        raise DataError(
                            f"{path}: more than {LONGEST:,} s, the longest recording that is read; cut it into several"
                        )
        except soundfile.LibsndfileError as error:
            raise _broken(path, error) from error
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: sample {int(np.argmin(np.isfinite(samples)))} is no finite number; write it again")
    if found != rate and len(samples):
        if warn:
            warnings.warn(f"{path}: {found} Hz, resampled to {rate} Hz", stacklevel=2)
        common = math.gcd(rate, found)
        samples = resample_poly(samples, rate // common, found // common)
    if len(samples) < WINDOW * rate // RATE:
        raise DataError(
            f"{path}: {len(samples)} samples ({1000 * len(samples) / rate:.0f} ms), expected 25 ms or more; record it "
            "again or move it away"
        )
    return samples.astype(np.float32, copy=False)


def _checked_rate(path: Path, rate: int) -> int:
    if not SLOWEST <= rate <= FASTEST:
        raise DataError(f"{path}: {rate:,} samples per second; expected {SLOWEST:,} to {FASTEST:,}, write it again")
    return rate


def _broken(path: Path, error: soundfile.LibsndfileError) -> DataError:
    kind = path.suffix.lower().removeprefix(".") or "sound"
    state = "empty" if path.stat().st_size == 0 else f"cannot be read as {kind} ({error.error_string})"
    return DataError(f"{path}: {state}; copy or unzip it again, or move it away")


def frame_centres(count: int) -> np.ndarray:
    """Sample at the centre of each of `count` frames of `mfcc`, (count,) float64: 80, 240, 400, ...

    Frame t stands for the samples 160 t ... 160 (t + 1); its window of 400 reaches 120 further on both sides.
    """
    return (np.arange(count) + 0.5) * HOP


def mfcc(samples: np.ndarray) -> np.ndarray:
    """(T, 39) float32 of samples (N,) at 16 kHz, T = N / 160 rounded: 13 MFCC, C0 first, and their two deltas.

    Kaldi's definition with 23 bands from 20 Hz to 8 kHz, no dither, and snip_edges off: the signal is mirrored at its
    ends, so that `frame_centres` holds for every frame. Deltas as Kaldi's add-deltas, with edge frames repeated:
    d[t] = (x[t+1] - x[t-1] + 2 x[t+2] - 2 x[t-2]) / 10, and the same again over d as if x went on beyond its ends.
    """
    options = kaldi.MfccOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.use_energy = False
    computer = kaldi.OnlineMfcc(options)
    computer.accept_waveform(RATE, samples * np.float32(FULL_SCALE))
    computer.input_finished()
    static = np.stack([computer.get_frame(t) for t in range(computer.num_frames_ready)])
    return kaldi.compute_deltas(kaldi.DeltaOptions(order=2, window=2), static)


def normalise(x: np.ndarray) -> np.ndarray:
    """(T, D) float32 with mean 0 and deviation 1 of every column, zeros where it is constant.

    The deviation has T - 1 below it: that is what the course's own files were divided by.
    """
    x = x.astype(np.float64)
    x -= x.mean(0)
    deviation = np.sqrt((x**2).sum(0) / max(len(x) - 1, 1))
    constant = deviation < 1e-6  # of features of size 1 ... 100: below what float32 resolves
    return np.where(constant, 0, x / np.where(constant, 1, deviation)).astype(np.float32)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """(T, 40) float32 of samples (N,) at 16 kHz, T = 1 + N // 160, centre of frame t at sample 160 t: HW4's features.

    As torchaudio's MelSpectrogram(16000, n_fft=400, hop_length=160, f_min=50, n_mels=40), then clamp to 1e-9 and
    natural log: periodic Hann window, mirrored ends, power, HTK mel scale, triangles of height 1. So the course's were
    made (yistLin/dvector, wav2mel.py), after sox had cut silence and set the volume.
    """
    import torch  # here, as workers that make MFCCs would wait seconds for it

    spectrum = torch.stft(
        torch.from_numpy(samples),
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.abs().square().T
    return (power @ torch.from_numpy(mel_bands())).clamp(min=FLOOR).log().numpy()


def mel_bands() -> np.ndarray:
    """Weights (201, 40) float32: triangles of height 1 over the frequencies, corners evenly spaced in mel."""
    lowest, highest = (2595 * math.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    corners = 700 * (10 ** (np.linspace(lowest, highest, MELS + 2) / 2595) - 1)
    above, widths = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None] - corners, np.diff(corners)
    return np.maximum(0, np.minimum(above[:, :-2] / widths[:-1], -above[:, 2:] / widths[1:])).astype(np.float32)
