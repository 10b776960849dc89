"""The likeliest speakers of a recording (16 kHz, one channel): python example.py FILE.wav."""

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
from runtime import load

facts = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
rate, width, hop, bands = facts["rate"], facts["window"], facts["hop"], facts["features"]
samples, found = soundfile.read(sys.argv[1], dtype="float32")
assert found == rate, f"resample it to {rate} Hz first"

# log-mel frames, as torchaudio's MelSpectrogram makes them
padded = np.pad(samples, width // 2, mode="reflect")
frames = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop] * np.hanning(width + 1)[:-1]
power = np.abs(np.fft.rfft(frames)) ** 2
lowest, highest = (2595 * np.log10(1 + f / 700) for f in (facts["lowest"], facts["highest"]))
corners = 700 * (10 ** (np.linspace(lowest, highest, bands + 2) / 2595) - 1)
above, between = np.linspace(0, rate / 2, width // 2 + 1)[:, None] - corners, np.diff(corners)
mel = np.maximum(0, np.minimum(above[:, :-2] / between[:-1], -above[:, 2:] / between[1:]))
x = np.log(np.maximum(power @ mel, facts["floor"])).astype(np.float32)[None]  # (1, T, 40)

said = load("model")(x=x, mask=np.ones(x.shape[:2], bool))  # said["embeddings"]: the voice as a unit vector
shares = np.exp(said["log_probabilities"][0])
for label in shares.argsort()[::-1][:5]:
    print(f"{shares[label]:.4f} {facts['classes'][label]}")
