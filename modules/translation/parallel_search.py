"""Translations whose words are said all at once (non-autoregressive): mask-predict, one cut after END, and by CTC.

The nets are `TransformerSeq2Seq(causal=False)`, and decode as they are: put them in eval mode for results without
dropout. Sources are tokens (B, S) with masks (B, S), True = valid. Padding and BOS are never said.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modules.nets.attention import padding_mask
from modules.nets.parallel_seq2seq import LengthPredictor, UnknownWords, Upsampling
from modules.nets.seq2seq import Memory, Seq2Seq, TransformerSeq2Seq
from modules.translation.search import Ends, Hypothesis


def _log_probabilities(net: TransformerSeq2Seq, states: Tensor, never: list[int]) -> Tensor:
    """(..., D) -> (..., V) in float32, -inf for words that may not be said."""
    logs = net.logits(states).float().log_softmax(-1)
    for word in never:  # a list as index would be copied to the device
        logs[..., word] = -torch.inf
    return logs


def _repeated(memory: Memory, count: int) -> Memory:
    """Each sentence `count` times, next to each other."""
    return Memory(
        [out.repeat_interleave(count, 0) for out in memory.outputs],
        None if memory.mask is None else memory.mask.repeat_interleave(count, 0),
        None if memory.hidden is None else memory.hidden.repeat_interleave(count, 1),
    )


def _lengths(source: Tensor, mask: Tensor | None) -> Tensor:
    """Of the sources, (B,)."""
    return source.new_full((len(source),), source.shape[1]) if mask is None else mask.sum(1)


# mask-predict


class Draft(NamedTuple):
    """Where mask-predict stands after an iteration."""

    words: Tensor
    """(N, T), padding where there is no place."""
    asked: Tensor
    """(N, T), True where the word was unknown and is new."""
    logs: Tensor
    """(N, T) in float32: log-probability of each word when it was said, 0 where there is no place."""


def refine(
    net: TransformerSeq2Seq, unknown: UnknownWords, memory: Memory, valid: Tensor, ends: Ends, iterations: int
) -> Iterator[Draft]:
    """The drafts of mask-predict (Ghazvininejad et al. 2019, arXiv 1904.09324), the last one is the best.

    At first all words are unknown; every iteration says those that are, each as the likeliest in its place. After
    iteration t of I the N (I - t) / I words of the lowest probability, rounded down, become unknown again.

    Args:
        net: The translator.
        unknown: Its unknown words.
        memory: Of N sources.
        valid: Places for words, (N, T).
        ends: Special tokens: none of them is said.
        iterations: I; fewer drafts come where no word remains unknown.
    """
    count = valid.sum(1)
    words = torch.full_like(valid, ends.pad, dtype=torch.int64)
    logs = torch.zeros_like(valid, dtype=torch.float32)
    asked = valid
    for t in range(1, iterations + 1):
        states = net.decode(unknown(net.embed(words), ~asked), memory, valid)
        best = _log_probabilities(net, states[asked], [ends.pad, ends.bos, ends.eos]).max(-1)
        words, logs = words.masked_scatter(asked, best.indices), logs.masked_scatter(asked, best.values)
        yield Draft(words, asked, logs)
        order = logs.masked_fill(~valid, torch.inf).argsort(dim=1, stable=True)
        asked = order.argsort(1) < (count * (iterations - t) // iterations).unsqueeze(1)
        if not asked.any():
            return


def judged(net: Seq2Seq, memory: Memory, words: Tensor, valid: Tensor, ends: Ends) -> Tensor:
    """Mean log-probability of words and EOS under a translator that goes token by token, (N,).

    Args:
        net: The translator.
        memory: Its memory of N sources.
        words: (N, T), padded.
        valid: (N, T), True = a word.
        ends: Special tokens.
    """
    before = torch.cat([torch.full_like(words[:, :1], ends.bos), words], 1)
    after = torch.cat([words, torch.full_like(words[:, :1], ends.pad)], 1).scatter(1, valid.sum(1, True), ends.eos)
    logs = net.logits(net.decode(net.embed(before), memory)).float().log_softmax(-1)
    logs = logs.gather(2, after.unsqueeze(2)).squeeze(2)
    return logs.where(after != ends.pad, 0.0).sum(1) / (valid.sum(1) + 1)


@torch.inference_mode()
def mask_predict(
    net: TransformerSeq2Seq,
    unknown: UnknownWords,
    predictor: LengthPredictor,
    source: Tensor,
    mask: Tensor | None,
    ends: Ends,
    iterations: int = 10,
    candidates: int = 5,
    rescorer: Seq2Seq | None = None,
) -> list[list[Hypothesis]]:
    """Translations of the likeliest lengths, refined at the same time; one iteration produces all tokens in one shot.

    Args:
        net, unknown, ends, iterations: As of `refine`.
        predictor: Of lengths, which have the limits of a search token by token.
        source: Tokens (B, S).
        mask: (B, S), True = valid; None: all.
        candidates: Lengths tried.
        rescorer: A translator that goes token by token and judges the candidates in place of the net itself (noisy
            parallel decoding, Gu et al. 2018, section 4.2).

    Returns:
        For every sentence its candidates, the highest score first: mean log-probability of the words, each when it was
        said, and of their number, which counts as one more word as it does in training; by a rescorer that of words
        and EOS. By their words alone (Ghazvininejad et al. 2019) too short a length may win: docs/hw5_decoding.md.
    """
    limits = torch.tensor([max(1, n - 1) for n in ends.limits([net], source, mask)], device=source.device)
    memory = net.encode(source, mask)
    read, logits = _lengths(source, mask), predictor(memory).float()
    tried = predictor.likeliest(logits, read, limits, candidates)
    lengths = tried.flatten()
    valid = padding_mask(lengths, int(lengths.max()))
    *_, last = refine(net, unknown, _repeated(memory, candidates), valid, ends, iterations)
    if rescorer is None:
        number = logits.log_softmax(1).gather(1, predictor.classes(read.unsqueeze(1), tried)).flatten()
        scores = (last.logs.sum(1) + number) / (lengths + 1)
    else:
        scores = judged(rescorer, _repeated(rescorer.encode(source, mask), candidates), last.words, valid, ends)
    found = [
        Hypothesis(words[:length], score)
        for words, length, score in zip(last.words.tolist(), lengths.tolist(), scores.tolist(), strict=True)
    ]
    groups = [found[first : first + candidates] for first in range(0, len(found), candidates)]
    return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in groups]


# a long output


def cut(words: Sequence[int], end: int) -> list[int]:
    """What stands before the first END."""
    return list(itertools.takewhile(lambda word: word != end, words))


def long_states(
    net: TransformerSeq2Seq,
    unknown: UnknownWords,
    source: Tensor,
    mask: Tensor | None,
    ends: Ends,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, list[int]]:
    """States (B, L, D) of as many places as a search token by token may take steps, and how many each source has.

    lengths are those of the sources, where they are known.
    """
    limits = ends.limits([net], source, mask, lengths)
    places = padding_mask(torch.tensor(limits), max(limits)).to(source.device, non_blocking=True)
    words = torch.full_like(places, ends.pad, dtype=torch.int64)
    return net.decode(unknown(net.embed(words), ~places), net.encode(source, mask), places), limits


def flat_places(counts: Tensor, length: int) -> Tensor:
    """The first counts[b] places of each row b of (B, length), as numbers into it when flattened; counts on the CPU."""
    return padding_mask(counts, length).flatten().nonzero().squeeze(1)


@torch.inference_mode()
def long_outputs(
    net: TransformerSeq2Seq, unknown: UnknownWords, source: Tensor, mask: Tensor | None, ends: Ends
) -> list[list[int]]:
    """The likeliest word, or EOS, in each place of each source (B, S), not yet cut."""
    states, limits = long_states(net, unknown, source, mask, ends)
    places = flat_places(torch.tensor(limits), states.shape[1]).to(source.device, non_blocking=True)
    chosen = states.flatten(0, 1).index_select(0, places)
    said = _log_probabilities(net, chosen, [ends.pad, ends.bos]).argmax(-1).tolist()
    rest = iter(said)
    return [list(itertools.islice(rest, count)) for count in limits]


# CTC


@torch.inference_mode()
def ctc_paths(
    net: TransformerSeq2Seq, upsampling: Upsampling, source: Tensor, mask: Tensor | None, ends: Ends
) -> list[list[int]]:
    """The likeliest path of each source (B, S): a word, or padding as the blank, in each of ratio S places."""
    memory = net.encode(source, mask)
    places, valid = upsampling(memory)
    logs = _log_probabilities(net, net.decode(places, memory, valid), [ends.bos, ends.eos])
    lengths = upsampling.ratio * _lengths(source, mask)
    return [path[:n] for path, n in zip(logs.argmax(-1).tolist(), lengths.tolist(), strict=True)]


# judging


def repeated_share(outputs: Iterable[Sequence[object]]) -> float:
    """Share of all tokens that equal the one before them, 0 to 1.

    It shows the multi-modality problem: places that do not know of each other begin the same word twice.
    """
    pairs = tokens = 0
    for output in outputs:
        tokens += len(output)
        pairs += sum(a == b for a, b in itertools.pairwise(output))
    return pairs / tokens if tokens else 0.0
