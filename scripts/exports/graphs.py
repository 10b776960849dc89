"""The networks of the five homeworks as plain functions of named tensors, for torch.export and ONNX.

Frames are float32 (B, T, D), masks bool (B, T), True = valid. Scalers and the mean over members are in the graph.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from datamodules.errors import DataError
from modules.classifier import mean_log_probabilities
from modules.hw1_covid import CovidRegressor
from modules.hw2_phoneme import PhonemeClassifier
from modules.hw3_food import FoodClassifier
from modules.hw4_speaker import SpeakerClassifier
from modules.hw5_translation import Translator
from modules.nets.attention import KVCache, padding_mask
from modules.nets.positions import LearnedPositions
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq, RecurrentState
from modules.nets.seq2seq import Memory, TransformerSeq2Seq
from modules.nets.transformer import DecoderCache

FRAMES, OTHER_FRAMES = 40, 61  # of the inputs that are traced, and of those that are compared
LEAST = 3  # frames: the masks of a strided network are proved from here on


class Graph(NamedTuple):
    """One file to write."""

    name: str
    """Of the file, without its ending."""
    module: nn.Module
    """Its `forward` takes the inputs by name."""
    inputs: dict[str, Tensor]
    """What is traced."""
    others: dict[str, Tensor]
    """Inputs of other sizes, on which the file is compared with the module."""
    dynamic: dict[str, dict[int, Any]]
    """By input: dimension -> torch.export.Dim."""
    outputs: list[str]

    @property
    def recurrent(self) -> bool:
        """Whether a part loops over time, which torch.export would unroll to a fixed length."""
        return any(isinstance(part, nn.RNNBase) for part in self.module.modules())


class CovidGraph(nn.Module):
    """Features in real units (B, C) -> percent (B,): the mean of the members."""

    def __init__(self, module: CovidRegressor) -> None:
        super().__init__()
        assert module.facts is not None
        self.net, self.members = module.net, len(module.facts["fold"])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B,)."""
        return self.net(x.expand(self.members, *x.shape)).mean(0)


class WindowGraph(nn.Module):
    """Windows (B, n, 39) -> log-probabilities (B, C)."""

    def __init__(self, module: PhonemeClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, 39) -> (B, C)."""
        return mean_log_probabilities(self.module(x))


class UtteranceGraph(nn.Module):
    """Whole utterances (B, T, 39), mask (B, T) -> log-probabilities (B, T, C)."""

    def __init__(self, module: PhonemeClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, 39), (B, T) -> (B, T, C)."""
        return mean_log_probabilities(self.module(x, mask))


class FoodGraph(nn.Module):
    """Images uint8 (B, 3, S, S) -> log-probabilities (B, C), without test-time augmentation."""

    def __init__(self, module: FoodClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C)."""
        return self.module(x).log_softmax(1)


class SpeakerGraph(nn.Module):
    """Log-mel frames (B, T, 40), mask (B, T) -> log-probabilities (B, C), unit embeddings (B, E)."""

    def __init__(self, module: SpeakerClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 40), (B, T) -> (B, C), (B, E)."""
        judged = self.module.judge({"x": x, "mask": mask})
        assert judged.embeddings is not None
        return judged.logs, judged.embeddings


class EncoderGraph(nn.Module):
    """Source tokens (B, S) -> what the steps read, and the state before the first: rows of all are sentences."""

    def __init__(self, module: Translator) -> None:
        super().__init__()
        self.net, self.pad = module.net, module.ends.pad

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """(B, S) -> keys and values of the memory (B, L, heads, S, d) and empty ones; or memory and hidden state."""
        memory = self.net.encode(source, source != self.pad)
        if isinstance(self.net, RecurrentSeq2Seq):
            assert memory.hidden is not None
            return memory.outputs[0], memory.hidden.transpose(0, 1)
        layers = self.net.start(memory).layers
        keys, values = (torch.stack([getattr(cross, name) for _, cross in layers], 1) for name in ("keys", "values"))
        return keys, values, keys[:, :, :, :0], values[:, :, :, :0]


class TransformerStep(nn.Module):
    """One more token of the target, with the keys and values of those before it."""

    def __init__(self, module: Translator) -> None:
        super().__init__()
        self.net, self.pad = module.net, module.ends.pad

    def forward(
        self, token: Tensor, source: Tensor, memory_keys: Tensor, memory_values: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, ...]:
        """Token (B,), source (B, S), caches (B, L, heads, S or T, d) -> logs (B, V), caches of T + 1 steps."""
        layers = []
        for i in range(memory_keys.shape[1]):
            own = KVCache()
            own.keys, own.values, own.length = keys[:, i], values[:, i], keys.shape[3]
            layers.append((own, KVCache(memory_keys[:, i], memory_values[:, i])))
        cache = DecoderCache(layers, source != self.pad)
        states = self.net.step(self.net.embed(token.unsqueeze(1)), cache)
        new = [torch.stack([getattr(own, name) for own, _ in layers], 1) for name in ("keys", "values")]
        return self.net.logits(states).squeeze(1).log_softmax(-1), *new


class RecurrentStep(nn.Module):
    """One more token of the target, with the hidden state of those before it."""

    def __init__(self, module: Translator) -> None:
        super().__init__()
        self.net, self.pad = module.net, module.ends.pad

    def forward(self, token: Tensor, source: Tensor, memory: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Token (B,), source (B, S), memory (B, S, D), hidden (B, L, H) -> logs (B, V), hidden (B, L, H)."""
        state = RecurrentState(hidden.transpose(0, 1).contiguous(), Memory([memory], source != self.pad))
        states = self.net.step(self.net.embed(token.unsqueeze(1)), state)
        return self.net.logits(states).squeeze(1).log_softmax(-1), state.hidden.transpose(0, 1)


def graphs_of(module: Any, settings: dict[str, Any]) -> list[Graph]:
    """What is written of a trained module.

    Args:
        module: In evaluation mode, with its facts.
        settings: Of its data, from the run's configuration.

    Raises:
        DataError: a network that is not exported.
    """
    makers: dict[type, Callable[[Any, dict[str, Any]], list[Graph]]] = {
        CovidRegressor: _covid,
        PhonemeClassifier: _phoneme,
        FoodClassifier: _food,
        SpeakerClassifier: _speaker,
        Translator: _translator,
    }
    if type(module) not in makers:
        known = ", ".join(kind.__name__ for kind in makers)
        raise DataError(f"{type(module).__name__} is not exported; these are: {known}")
    return makers[type(module)](module, settings)


def _batch() -> Any:
    return Dim("batch")


def _covid(module: CovidRegressor, settings: dict[str, Any]) -> list[Graph]:
    facts: Any = module.facts
    used = facts["used"][0]
    scale = facts["scale"][0].nan_to_num(posinf=1.0)

    def rows(count: int) -> dict[str, Tensor]:
        x = torch.zeros(count, len(facts["features"]))
        x[:, used] = facts["mean"][0] + scale * torch.randn(count, len(used))
        return {"x": x}

    return [Graph("model", CovidGraph(module), rows(3), rows(5), {"x": {0: _batch()}}, ["percent"])]


def _longest(module: nn.Module) -> int | None:
    """Most frames or tokens that a learned table of positions reaches."""
    return min([len(part.table) for part in module.modules() if isinstance(part, LearnedPositions)], default=None)


def _frames(module: nn.Module, name: str, graph: nn.Module, width: int, outputs: list[str]) -> list[Graph]:
    def frames(lengths: list[int]) -> dict[str, Tensor]:
        longest = max(lengths)
        return {"x": torch.randn(len(lengths), longest, width), "mask": padding_mask(torch.tensor(lengths), longest)}

    sizes = {0: _batch(), 1: Dim("frames", min=LEAST, max=_longest(module))}
    inputs, others = frames([FRAMES, FRAMES, FRAMES - 9]), frames([OTHER_FRAMES, LEAST + 20])
    return [Graph(name, graph, inputs, others, {"x": sizes, "mask": sizes}, outputs)]


def _phoneme(module: PhonemeClassifier, settings: dict[str, Any]) -> list[Graph]:
    facts: Any = module.facts
    if facts["window"] is None:
        return _frames(module, "model", UtteranceGraph(module), facts["features"], ["log_probabilities"])
    x, others = (torch.randn(count, facts["window"], facts["features"]) for count in (3, 5))
    sizes = {"x": {0: _batch()}}
    return [Graph("model", WindowGraph(module), {"x": x}, {"x": others}, sizes, ["log_probabilities"])]


def _food(module: FoodClassifier, settings: dict[str, Any]) -> list[Graph]:
    side = settings["image_size"]
    x, others = (torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8) for count in (2, 3))
    sizes = {"x": {0: _batch()}}
    return [Graph("model", FoodGraph(module), {"x": x}, {"x": others}, sizes, ["log_probabilities"])]


def _speaker(module: SpeakerClassifier, settings: dict[str, Any]) -> list[Graph]:
    facts: Any = module.facts
    return _frames(module, "model", SpeakerGraph(module), facts["features"], ["log_probabilities", "embeddings"])


def _translator(module: Translator, settings: dict[str, Any]) -> list[Graph]:
    facts: Any = module.facts
    if not isinstance(module.net, TransformerSeq2Seq | RecurrentSeq2Seq):
        raise DataError(f"model.net {type(module.net).__name__} is not exported; TransformerSeq2Seq is")
    recurrent = isinstance(module.net, RecurrentSeq2Seq)
    memory, state = (["memory"], ["hidden"]) if recurrent else (["memory_keys", "memory_values"], ["keys", "values"])
    longest = module.net.max_length
    batch, length = _batch(), Dim("source_length", max=longest)
    past = Dim("past", min=0, max=None if longest is None else longest - 1)
    encoder, step = EncoderGraph(module), RecurrentStep(module) if recurrent else TransformerStep(module)

    def sources(count: int, size: int) -> dict[str, Tensor]:
        source = torch.randint(facts["eos"] + 1, facts["vocabulary"], (count, size))
        source[0, -1] = facts["eos"]
        source[1:, -3:] = facts["pad"]
        return {"source": source}

    @torch.no_grad()
    def steps(given: dict[str, Tensor], before: int) -> dict[str, Tensor]:
        """A token after `before` others."""
        source = given["source"]
        made = dict(zip([*memory, *state], encoder(source), strict=True))
        for _ in range(before):
            new = step(source[:, 0], source, *made.values())[1:]
            made |= zip(state, new, strict=True)
        given = {"token": source[:, 1], "source": source, **made}
        return {name: value.clone() for name, value in given.items()}  # torch.export stumbles over shared memory

    inputs, others = sources(3, 9), sources(2, 13)
    sizes: dict[str, dict[int, Any]] = {"source": {0: batch, 1: length}}
    by_name = {"memory": {0: batch, 1: length}, "hidden": {0: batch}}
    by_name |= {name: {0: batch, 3: length} for name in ("memory_keys", "memory_values")}
    by_name |= {name: {0: batch, 3: past} for name in ("keys", "values")}
    of_step = {"token": {0: batch}} | sizes | {name: by_name[name] for name in [*memory, *state]}
    return [
        Graph("encoder", encoder, inputs, others, sizes, [*memory, *state]),
        Graph(
            "decoder_step", step, steps(inputs, 4), steps(others, 0), of_step,
            ["log_probabilities", *(f"new_{name}" for name in state)],
        ),
    ]  # fmt: skip
