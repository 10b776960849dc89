"""Decoding: from a translator's log-probabilities to tokens (greedy, beam search, drawing at random).

Every search takes several translators, whose probabilities are averaged (an ensemble), and goes token by token from the
states that `Seq2Seq.start` gives. The nets decode as they are: put them in eval mode for results without dropout.

On a GPU the host only now and then looks for sentences that are done, as it has to wait for the device to see them
(LOOK); in between, they go on with the others and nothing that they say is kept.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.nets.seq2seq import Memory, Seq2Seq

LOOK = {"cpu": 1}
"""Steps from one look for finished sentences to the next, by the kind of device; of others: OTHERWISE."""
OTHERWISE = 4


class Ends(NamedTuple):
    """How outputs begin and end: special tokens, and the longest output a source may have.

    A source of n tokens, its EOS among them, has at most int(ratio * n + extra) tokens, then EOS, as in fairseq; n is
    each sentence's own, so that its neighbours in the batch do not matter.
    """

    pad: int
    bos: int
    eos: int
    ratio: float = 1.2
    extra: float = 10.0

    def limits(
        self, nets: Sequence[Seq2Seq], source: Tensor, mask: Tensor | None, lengths: Sequence[int] | None = None
    ) -> list[int]:
        """Steps that each source of (B, S) may take, the one of EOS among them; no more than the nets' positions.

        Where the caller knows the lengths of the sources nobody waits for the device to count them.
        """
        if lengths is None:
            lengths = [source.shape[1]] * len(source) if mask is None else mask.sum(1).tolist()
        longest = min([net.max_length for net in nets if net.max_length is not None], default=None)
        steps = [max(0, int(self.ratio * n + self.extra)) + 1 for n in lengths]
        return steps if longest is None else [min(n, longest) for n in steps]


class Hypothesis(NamedTuple):
    """A finished translation of one sentence, with its score."""

    tokens: list[int]
    """Without BOS and EOS."""
    score: float
    """Sum of the log-probabilities of its tokens and EOS, over length^penalty, where the length counts EOS too."""


class Drawn(NamedTuple):
    """n drawn outputs for each of B sentences; T is the length of the longest."""

    tokens: Tensor
    """(B, n, T), with EOS, then padding."""
    mask: Tensor
    """(B, n, T), True up to and including EOS."""
    scores: Tensor
    """(B, n) in float32: log-probability of each output under the nets, at temperature 1."""


class _Prefix:
    """In place of a translator's own state where there is no cache: every step decodes all tokens so far again."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.embedded: Tensor | None = None

    def step(self, net: Seq2Seq, embedded: Tensor) -> Tensor:
        self.embedded = embedded if self.embedded is None else torch.cat([self.embedded, embedded], 1)
        return net.decode(self.embedded, self.memory)

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """As DecoderCache.reorder, with a memory for every row."""
        outputs, mask, hidden = self.memory
        self.memory = Memory(
            [out.index_select(0, rows) for out in outputs],
            None if mask is None else mask.index_select(0, rows),
            None if hidden is None else hidden.index_select(1, rows),
        )
        if self.embedded is not None:
            self.embedded = self.embedded.index_select(0, rows)


class _Team:
    """Translators that choose tokens together, and their states: n rows for each sentence, next to each other.

    With `room` their caches have room for so many steps from the start; rows that move at every step do better without.
    """

    def __init__(
        self,
        nets: Sequence[Seq2Seq],
        source: Tensor,
        mask: Tensor | None,
        ends: Ends,
        rows: int,
        cached: bool = True,
        room: int = 0,
    ) -> None:
        self.nets, self.ends, self.cached = nets, ends, cached
        self.never = self.before_end = torch.zeros(0)  # (V,) bool: tokens that never follow, and all but EOS
        memories = [net.encode(source, mask) for net in nets]
        self.states: list[Any] = [
            net.start(memory, room) if cached else _Prefix(memory) for net, memory in zip(nets, memories, strict=True)
        ]
        self.reorder(torch.arange(len(source), device=source.device).repeat_interleave(rows))

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Keep the caches of these hypotheses; see DecoderCache.reorder."""
        for state in self.states:
            state.reorder(rows, sentences)

    def log_probabilities(self, tokens: Tensor, last: Tensor | None) -> Tensor:
        """Log-probabilities (B, n, V) in float32 of what follows tokens (B, n): log of the mean of the nets'.

        Padding and BOS never follow, and only EOS in sentences whose last step this is, last (B,); None: of none.
        """
        logs = []
        for net, state in zip(self.nets, self.states, strict=True):
            embedded = net.embed(tokens.reshape(-1, 1))
            states = net.step(embedded, state) if self.cached else state.step(net, embedded)
            logs.append(net.logits(states[:, -1]).float().log_softmax(-1))
        mean = logs[0] if len(logs) == 1 else torch.stack(logs).logsumexp(0) - math.log(len(logs))
        if not len(self.never):  # made once: numbers in a list would be copied to the device at every step
            token = torch.arange(mean.shape[1], device=mean.device)
            self.never = (token == self.ends.pad) | (token == self.ends.bos)
            self.before_end = token != self.ends.eos
        mean = mean.unflatten(0, tokens.shape).masked_fill_(self.never, -torch.inf)
        return mean if last is None else mean.masked_fill_(last.view(-1, 1, 1) & self.before_end, -torch.inf)


def block_repeats(logs: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Log-probabilities (B, n, V) where no token follows that would end an n-gram for the second time.

    Args:
        logs: Of what follows; changed in place.
        tokens: So far, (B, n, t), with BOS or without, as nothing repeats it.
        size: Tokens of an n-gram; 1 lets no token come twice. 0 blocks nothing.
    """
    if not size or tokens.shape[2] < size:
        return logs
    grams = tokens.unfold(2, size, 1)  # (B, n, t - size + 1, size)
    last = tokens[:, :, tokens.shape[2] - size + 1 :].unsqueeze(2)
    again = (grams[..., :-1] == last).all(3)
    blocked = torch.zeros_like(logs).scatter_add_(2, grams[..., -1], again.to(logs.dtype))
    return logs.masked_fill_(blocked > 0, -torch.inf)


@torch.inference_mode()
def beam_search(
    nets: Sequence[Seq2Seq],
    source: Tensor,
    mask: Tensor | None,
    ends: Ends,
    width: int = 5,
    n_best: int = 1,
    penalty: float = 1.0,
    cached: bool = True,
    no_repeat: int = 0,
) -> list[list[Hypothesis]]:
    """The translations with the highest scores among those that never fall out of the `width` best on the way.

    The search is fairseq's. At every step the 2 x width likeliest continuations of a sentence's beams are looked at.
    Those that end and are among the first `width` are kept as hypotheses; the first `width` that do not end (at most
    half of the 2 x width do) are the next beams. A sentence is done, and leaves the batch, when `width` hypotheses are
    kept, or at its limit. With a width of all sequences this is the exact maximum; a width of 1 is `greedy`.

    Args:
        nets: One or more translators with the same vocabulary.
        source: Tokens (B, S).
        mask: (B, S), True = valid; None: all.
        ends: Special tokens and limits.
        width: Beams of a sentence.
        n_best: Hypotheses to return for each sentence, at most `width`.
        penalty: Power of the length that divides the sum of log-probabilities: 1 gives their mean, 0 leaves the sum,
            which prefers short outputs.
        cached: False decodes the whole prefix at every step: slow, and the same.
        no_repeat: No n-gram of so many tokens comes twice in an output (Paulus et al. 2017, arXiv 1705.04304, section
            2.5, for 3); 0 allows all.

    Returns:
        For every sentence its best hypotheses, the highest score first.

    Raises:
        ValueError: n_best is greater than width.
    """
    if n_best > width:
        raise ValueError(f"a beam of {width} cannot give the {n_best} best")
    limits = ends.limits(nets, source, mask)
    device, look = source.device, LOOK.get(source.device.type, OTHERWISE)
    kept = _Kept(len(limits), width, max(limits), device)
    here = list(range(len(limits)))  # sentences that are not done
    rows, until = torch.arange(len(limits), device=device), torch.tensor(limits, device=device)
    team = _Team(nets, source, mask, ends, width, cached)
    tokens = source.new_full((len(here), width, 1), ends.bos)
    scores = torch.full((len(here), width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the beams begin alike: one of them counts
    for length in itertools.count(1):
        some_end = any(limits[i] == length for i in here)
        logs = team.log_probabilities(tokens[:, :, -1], until == length if some_end else None)
        logs = block_repeats(logs, tokens, no_repeat)
        values, places = (scores.unsqueeze(2) + logs).flatten(1).topk(2 * width)
        beam, token = places // logs.shape[2], places % logs.shape[2]
        final = token == ends.eos

        complete = final[:, :width] & (values[:, :width] != -torch.inf)
        outputs = tokens.gather(1, beam[:, :width].unsqueeze(2).expand(-1, -1, length))[:, :, 1:]
        kept.add(rows, complete, outputs, values[:, :width])

        chosen = final.long().argsort(dim=1, stable=True)[:, :width]  # those that do not end, in their order
        scores, beam, token = (x.gather(1, chosen) for x in (values, beam, token))
        tokens = torch.cat([tokens.gather(1, beam.unsqueeze(2).expand(-1, -1, length)), token.unsqueeze(2)], 2)
        stay = None
        at_limit = all(limits[i] <= length for i in here)
        if at_limit or length % look == 0:
            left = [] if at_limit else [b for b, more in enumerate(kept.open(rows, until > length).tolist()) if more]
            if not left:
                break
            if len(left) < len(here):
                stay = torch.tensor(left, device=device)
                tokens, scores, beam, rows, until = (x[stay] for x in (tokens, scores, beam, rows, until))
                here = [here[b] for b in left]
        first = torch.arange(len(here), device=device) if stay is None else stay
        team.reorder((first.unsqueeze(1) * width + beam).flatten(), stay)
    return kept.best(n_best, penalty)


class _Kept:
    """Finished hypotheses of a beam search, on the device: B sentences keep `width` of them, or a few more at once.

    Args:
        count, width: B and how many are enough for a sentence.
        longest: Tokens of the longest hypothesis, EOS among them.
        device: Of the search.
    """

    def __init__(self, count: int, width: int, longest: int, device: torch.device) -> None:
        self.width = width
        room = 2 * width  # fewer than width before a step, at most width in it; what is refused goes to the last place
        self.tokens = torch.zeros(count, room, longest, dtype=torch.int64, device=device)
        self.scores = torch.zeros(count, room, device=device)
        self.lengths = torch.zeros(count, room, dtype=torch.int64, device=device)
        self.counts = torch.zeros(count, dtype=torch.int64, device=device)

    def add(self, rows: Tensor, complete: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Keep some of the candidates of sentences that have not enough yet.

        Args:
            rows: Numbers of the sentences, (b,).
            complete: Which candidates, (b, width) bool.
            tokens: Of the candidates, without EOS, (b, width, t).
            scores: Sums of their log-probabilities, EOS among them, (b, width).
        """
        counts = self.counts[rows]
        complete = complete & (counts < self.width).unsqueeze(1)
        slot = torch.where(complete, counts.unsqueeze(1) + complete.cumsum(1) - 1, 2 * self.width - 1)
        at = rows.unsqueeze(1), slot
        self.tokens[:, :, : tokens.shape[2]].index_put_(at, tokens)
        self.scores.index_put_(at, scores)
        self.lengths.index_put_(at, torch.full_like(slot, tokens.shape[2]))
        self.counts.index_add_(0, rows, complete.sum(1))

    def open(self, rows: Tensor, more: Tensor) -> Tensor:
        """Which sentences (b,) go on: they have not enough, and may take more steps, more (b,)."""
        return more & (self.counts[rows] < self.width)

    def best(self, n_best: int, penalty: float) -> list[list[Hypothesis]]:
        """The best of every sentence, the highest score first."""
        parts = zip(*(part.tolist() for part in (self.counts, self.tokens, self.lengths, self.scores)), strict=True)
        return [
            sorted(
                (Hypothesis(tokens[i][: sizes[i]], scores[i] / (sizes[i] + 1) ** penalty) for i in range(count)),
                key=lambda hypothesis: -hypothesis.score,
            )[:n_best]
            for count, tokens, sizes, scores in parts
        ]


def _unroll(
    nets: Sequence[Seq2Seq],
    source: Tensor,
    mask: Tensor | None,
    ends: Ends,
    count: int,
    choose: Callable[[Tensor], Tensor],
    no_repeat: int = 0,
) -> Drawn:
    """`count` outputs a sentence, token after token; `choose` picks from log-probabilities (N, V) one token a row."""
    limits = ends.limits(nets, source, mask)
    device, look = source.device, LOOK.get(source.device.type, OTHERWISE)
    here = list(range(len(limits)))  # sentences with an output that goes on
    places, until = torch.arange(len(limits), device=device), torch.tensor(limits, device=device)
    team = _Team(nets, source, mask, ends, count, room=max(limits))
    tokens = source.new_full((len(here), count, max(limits)), ends.pad)
    scores = torch.zeros(len(here), count, device=device)
    last = source.new_full((len(here), count), ends.bos)
    goes_on = torch.ones_like(last, dtype=torch.bool)
    for length in itertools.count(1):
        some_end = any(limits[i] == length for i in here)
        logs = team.log_probabilities(last, until == length if some_end else None)
        logs = block_repeats(logs, tokens[places, :, : length - 1], no_repeat)
        last = choose(logs.flatten(0, 1)).view_as(last)
        scores[places] += logs.gather(2, last.unsqueeze(2)).squeeze(2).where(goes_on, 0.0)
        last = last.where(goes_on, ends.pad)
        tokens[places, :, length - 1] = last
        goes_on = goes_on & (last != ends.eos)
        if all(limits[i] <= length for i in here):
            break
        if length % look:
            continue
        left = [b for b, more in enumerate(goes_on.any(1).tolist()) if more]
        if not left:
            break
        if len(left) < len(here):
            stay = torch.tensor(left, device=device)
            rows = stay.unsqueeze(1) * count + torch.arange(count, device=device)
            team.reorder(rows.flatten(), stay)
            last, goes_on, places, until = (x[stay] for x in (last, goes_on, places, until))
            here = [here[b] for b in left]
    valid = tokens != ends.pad
    longest = length if look == 1 else int(valid.sum(2).max())
    return Drawn(tokens[:, :, :longest], valid[:, :, :longest], scores)


@torch.inference_mode()
def greedy(
    nets: Sequence[Seq2Seq],
    source: Tensor,
    mask: Tensor | None,
    ends: Ends,
    penalty: float = 1.0,
    no_repeat: int = 0,
) -> list[list[Hypothesis]]:
    """The likeliest token at every step; arguments and result as of `beam_search` with a width of 1, but faster."""
    tokens, valid, scores = _unroll(nets, source, mask, ends, 1, lambda logs: logs.argmax(1), no_repeat)
    found = zip(tokens[:, 0].tolist(), valid.sum(2)[:, 0].tolist(), scores[:, 0].tolist(), strict=True)
    return [[Hypothesis(row[: length - 1], score / length**penalty)] for row, length, score in found]


@torch.no_grad()  # not inference mode: reinforcement learning feeds the tokens to a pass with gradients
def draw_outputs(
    nets: Sequence[Seq2Seq],
    source: Tensor,
    mask: Tensor | None,
    ends: Ends,
    count: int = 1,
    temperature: float = 1.0,
) -> Drawn:
    """Outputs drawn token by token from the translators' probabilities, padding and BOS left out beforehand.

    Args:
        nets, source, mask, ends: As of `beam_search`.
        count: n, outputs a sentence; they share its memory.
        temperature: Divides the log-probabilities: below 1 the likely become likelier.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected more than 0")

    def draw(logs: Tensor) -> Tensor:
        return torch.multinomial((logs / temperature).softmax(1), 1).squeeze(1)

    return _unroll(nets, source, mask, ends, count, draw)
