"""The phone of every 10 ms of a recording (16 kHz, one channel): python example.py FILE.wav."""

import json
import sys
from pathlib import Path

import kaldi_native_fbank as kaldi
import numpy as np
import soundfile
from runtime import load

facts = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
samples, rate = soundfile.read(sys.argv[1], dtype="float32")
assert rate == facts["rate"], f"resample it to {facts['rate']} Hz first"

options = kaldi.MfccOptions()  # Kaldi's defaults, but these
options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.snip_edges = rate, 0, False
options.use_energy = False
computer = kaldi.OnlineMfcc(options)
computer.accept_waveform(rate, samples * 32768)
computer.input_finished()
static = np.stack([computer.get_frame(t) for t in range(computer.num_frames_ready)])
x = kaldi.compute_deltas(kaldi.DeltaOptions(order=2, window=2), static).astype(np.float64)
x = ((x - x.mean(0)) / np.maximum(x.std(0, ddof=1), 1e-6)).astype(np.float32)  # (T, 39)

model, count = load("model"), len(x)
if facts["window"]:
    near = np.arange(count)[:, None] + np.arange(-(facts["window"] // 2), facts["window"] // 2 + 1)
    logs = model(x=x[near.clip(0, count - 1)])["log_probabilities"]
else:  # heard as several throats, the surer the louder
    throats = np.array(facts["throats"] or [np.eye(13)], np.float32)
    heard = np.stack([(x.reshape(count, 3, 13) @ matrix.T).reshape(count, 39) for matrix in throats])
    logs = model(x=heard, mask=np.ones(heard.shape[:2], bool))["log_probabilities"]
    sure = facts["sharpness"] * (np.exp(logs) * logs).sum(2).mean(1)
    logs = np.logaddexp.reduce(logs + (sure - np.logaddexp.reduce(sure))[:, None, None], axis=0)

best, back = logs[0], []  # the likeliest path; where all transitions are 0, each frame's best class
follows = np.array(facts["transitions"])
for frame in logs[1:]:
    score = best[:, None] + follows
    back.append(score.argmax(0))
    best = score.max(0) + frame
path = [int(best.argmax())]
for origin in reversed(back):
    path.append(int(origin[path[-1]]))
print(*[facts["classes"][label] for label in reversed(path)])
