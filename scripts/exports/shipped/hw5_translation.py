"""The likeliest word at every step (greedy decoding), for each sentence given: python example.py "A sentence." ..."""

import json
import sys
from pathlib import Path

import numpy as np
from cleaning import CLEAN
from detokenize import RESTORE, one_line
from runtime import load
from sentencepiece import SentencePieceProcessor

here = Path(__file__).parent
facts = json.loads((here / "facts.json").read_text(encoding="utf-8"))
pieces = SentencePieceProcessor(model_file=str(here / "tokenizer.model"))
encoder, step = load("encoder"), load("decoder_step")

sources = [[*pieces.encode(CLEAN[facts["source"]](text)), facts["eos"]] for text in sys.argv[1:]]
lengths = np.array([len(tokens) for tokens in sources])
source = np.full((len(sources), lengths.max()), facts["pad"])
for row, tokens in enumerate(sources):
    source[row, : len(tokens)] = tokens
limits = np.minimum((1.2 * lengths + 10).astype(int), (facts["longest"] or 1 << 30) - 1)

found = encoder(source=source)
memory = {name: found[name] for name in facts["memory"]}
state = {name: found[name] for name in facts["state"]}
token, target = np.full(len(sources), facts["bos"]), []
ended = np.zeros(len(sources), bool)
for length in range(limits.max()):
    out = step(token=token, source=source, **memory, **state)
    state = {name: out[f"new_{name}"] for name in facts["state"]}
    logs = out["log_probabilities"]
    logs[:, [facts["pad"], facts["bos"]]] = -np.inf
    token = np.where(length < limits, logs.argmax(1), facts["eos"])
    target.append(token)
    ended |= token == facts["eos"]
    if ended.all():
        break
for said in np.stack(target, 1).tolist():
    words = said[: said.index(facts["eos"])] if facts["eos"] in said else said
    print(RESTORE[facts["target"]](one_line(pieces.decode(words))))
