"""Translates lines by one run or several together."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from datamodules.base import Facts
from datamodules.errors import DataError
from datamodules.samplers import length_buckets
from datamodules.text.cleaning import CLEAN, is_simplified
from datamodules.text.tokenizer import EOS, PAD, Tokenizer
from modules.hw5_translation import Translator
from modules.translation.noise import noisy
from scripts.run.checkpoint import load_translator
from scripts.run.device import autocast, use_tensor_cores
from scripts.translation.reading import Line

Way = Literal["beam", "sampling", "noise"]
"""The likeliest translation, one drawn from the probabilities, or the likeliest with noise (Edunov et al. 2018)."""


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: this machine has none that torch can use; leave it out")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


class LineTranslator:
    """One trained model, or an ensemble, from lines to lines.

    Args:
        models: Checkpoints and flags, see `planned`.
        device: auto, cpu or cuda.
        max_tokens: Of a batch: sentences x the longest source.
        precision: Of the networks' products: auto (see scripts/run/device.py), or as trainer.precision.
        trust: Whether classes that leeml does not know may be built.
        way: How a translation is found. What is drawn is a function of the seed and the lines that come together.
        seed: Of what is drawn.

    Raises:
        DataError: a checkpoint is none of ours, the models cannot work together, or they cannot draw.
    """

    def __init__(
        self,
        models: Sequence[tuple[Path, Sequence[str]]],
        device: str,
        max_tokens: int,
        precision: str = "auto",
        trust: bool = False,
        way: Way = "beam",
        seed: int = 0,
    ) -> None:
        use_tensor_cores()
        self.way, self.seed = way, seed
        self.device, self.max_tokens, self.precision = _device(device), max_tokens, precision
        loaded = [load_translator(path, flags, trust).to(self.device) for path, flags in models]
        paths = [path for path, _ in models]
        self.model, facts = loaded[0], loaded[0].facts
        for path, other in zip(paths[1:], loaded[1:], strict=True):
            _match(paths[0], facts, path, other.facts)
            if {type(m).translate for m in (self.model, other)} != {Translator.translate}:
                raise DataError(f"{path}: only models that say word after word make an ensemble; name one run")
            self.model.others.append(other.net)
        if way == "sampling" and type(self.model).translate != Translator.translate:
            raise DataError(f"{paths[0]}: says no word after another, so none can be drawn; --way beam or noise")
        self.source, self.target = facts["source"], facts["target"]
        self.tokenizer = Tokenizer.from_tensor(facts["tokenizer"])
        self.longest = min(model.facts["max_length"] for model in loaded)
        self._seen_simplified = False

    @torch.inference_mode()
    def __call__(self, lines: Sequence[Line]) -> list[str]:
        """A line of cleaned text for each; empty where the cleaned line is empty. Too long ones are cut, and said."""
        texts = [CLEAN[self.source](line.text) for line in lines]
        if self.source == "zh" and not self._seen_simplified and is_simplified(texts):
            self._seen_simplified = True
            warn(f"{lines[0].place} and on: Simplified Chinese; the course's is Traditional, convert it (OpenCC, s2tw)")
        sources = self.tokenizer.encode(texts)
        for line, source in zip(lines, sources, strict=True):
            if len(source) >= self.longest:
                warn(
                    f"{line.place}: {len(source) + 1} tokens, cut to the {self.longest} that the model was trained for"
                )
                del source[self.longest - 1 :]
        key = hashlib.blake2b("\n".join(texts).encode(), digest_size=7).digest()
        generator = np.random.default_rng((self.seed, int.from_bytes(key)))
        torch.manual_seed(int(generator.integers(2**62)))
        translate = self.model.sampled if self.way == "sampling" else self.model.translate
        said = [""] * len(lines)
        rows = np.array([row for row, source in enumerate(sources) if source], np.int64)
        lengths = np.array([len(sources[row]) + 1 for row in rows], np.int64)
        for batch in length_buckets(lengths, self.max_tokens) if len(rows) else []:
            chosen = rows[batch].tolist()
            padded = pad_sequence([torch.tensor([*sources[row], EOS]) for row in chosen], True, PAD)
            with autocast(self.device, self.precision):
                texts_of_batch = translate(padded.to(self.device))
            for row, text in zip(chosen, texts_of_batch, strict=True):
                said[row] = text
        return [noisy(text, self.target, generator) for text in said] if self.way == "noise" else said


def _match(path: Path, facts: Facts, other_path: Path, other: Facts) -> None:
    """Hold two models of an ensemble against each other."""
    ways = [f"from {f['source']} to {f['target']}" for f in (facts, other)]
    if ways[0] != ways[1]:
        raise DataError(f"{other_path} translates {ways[1]}, {path} {ways[0]}: an ensemble needs runs of one direction")
    if not torch.equal(facts["tokenizer"], other["tokenizer"]):
        raise DataError(
            f"{other_path}: a tokenizer of another run than that of {path}; an ensemble needs runs on the same pairs, "
            "with the same data.fold, data.seed and data.vocabulary"
        )


def warn(text: str) -> None:
    """A line on standard error, above the bar."""
    tqdm.write(f"leeml: warning: {text}", file=sys.stderr)
