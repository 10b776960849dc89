"""HW5, non-autoregressive: translators that produce all tokens at once, with three ways to find their number."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from modules.hw5_translation import Translator
from modules.nets.attention import padding_mask
from modules.nets.parallel_seq2seq import LengthPredictor, UnknownWords, Upsampling
from modules.nets.seq2seq import Memory, Seq2Seq, TransformerSeq2Seq
from modules.pictures.drafts import drafts_grid
from modules.translation.ctc import alignment, collapse, ctc_losses, fits
from modules.translation.losses import smoothed_cross_entropy
from modules.translation.parallel_search import (
    Draft,
    ctc_paths,
    cut,
    flat_places,
    long_outputs,
    long_states,
    mask_predict,
    refine,
)


def some(valid: Tensor, count: Tensor) -> Tensor:
    """So many of the valid places of each row, drawn evenly: (B, T) bool and (B,) -> (B, T) bool."""
    noise = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, 2.0)
    return (noise.argsort(1).argsort(1) < count.unsqueeze(1)) & valid


def _check_share(glance: float) -> None:
    if not 0 <= glance <= 1:
        raise MisconfigurationException(f"model.glance is {glance}: expected a share, from 0 to 1")


class ParallelTranslator(Translator, ABC):
    """What these translators share: the Translator's judging, with losses and decoding of their own.

    Encoder and decoder have the names that they have in a Translator, of the same layers: with `start` a fit can begin
    with the weights of a translator that goes token by token.

    Args:
        optimizer: See HomeworkModule.
        net: As of Translator, a TransformerSeq2Seq whose decoder is not causal. Default: of the usual size.
        label_smoothing, start: See Translator.
    """

    net: TransformerSeq2Seq

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[[int], Seq2Seq] | None = None,
        label_smoothing: float = 0.1,
        start: str | None = None,
    ) -> None:
        super().__init__(
            optimizer, net or functools.partial(TransformerSeq2Seq, causal=False), label_smoothing, start=start
        )
        self.teacher_forcing = None  # there is no word before

    def build(self, facts: dict[str, Any]) -> None:
        """Create network, tokenizer and metrics.

        Raises:
            MisconfigurationException: the decoder is causal or recurrent.
        """
        super().build(facts)
        if not isinstance(self.net, TransformerSeq2Seq) or self.net.decoder.causal:
            raise MisconfigurationException(
                f"model.net is a {type(self.net).__name__} that says word after word; a parallel translator needs a "
                "TransformerSeq2Seq with causal: false"
            )

    def _words(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (B, T) without EOS, and where their words are: (B, T - 1) each."""
        valid = (target != self.ends.pad) & (target != self.ends.eos)
        return target.where(valid, self.ends.pad)[:, :-1], valid[:, :-1]

    def _sizes(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens of each source, EOS among them, and words of each target without it: (B,) each, on the CPU."""
        read, said = torch.tensor(batch["lengths"])
        return read, said - 1

    _training_losses = Translator._sum_of_losses  # their losses are not all of words

    @abstractmethod
    def _losses(self, batch: dict[str, Any], smoothing: float) -> tuple[Tensor, Tensor]:
        """Losses (n,), and whether the likeliest words are right."""

    @abstractmethod
    def translate(self, source: Tensor, beam: int | None = None) -> list[str]:
        """The best translation of each source (B, S), as cleaned text."""


class MaskedTranslator(ParallelTranslator):
    """A conditional masked language model, and mask-predict (Ghazvininejad et al. 2019, arXiv 1904.09324).

    In training a number of words, drawn evenly from 1 to all, is unknown, and said from the others; so is the length,
    which counts as one more word. The loss of validation and test is that of a start where no word is known.

    Args:
        optimizer, net, label_smoothing, start: As of ParallelTranslator.
        iterations: Of mask-predict.
        candidates: Lengths tried, where not told otherwise, at most all that the predictor knows; the quick
            translations of a validation try one.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[[int], Seq2Seq] | None = None,
        label_smoothing: float = 0.1,
        iterations: int = 10,
        candidates: int = 5,
        start: str | None = None,
    ) -> None:
        super().__init__(optimizer, net, label_smoothing, start)
        if iterations < 1 or candidates < 1:
            raise MisconfigurationException(
                f"model.iterations is {iterations}, model.candidates {candidates}: expected 1 or more"
            )
        self.iterations, self.candidates = iterations, candidates
        self.rescorer: Seq2Seq | None = None
        """A translator token by token that chooses among the candidates; None: their own probabilities."""

    def build(self, facts: dict[str, Any]) -> None:
        """Create network, tokenizer and metrics."""
        super().build(facts)
        self.unknown, self.predictor = UnknownWords(self.net.d_model), LengthPredictor(self.net.d_model)

    def _known(self, words: Tensor, valid: Tensor, memory: Memory, count: Tensor) -> Tensor:
        """Which words (B, T) the decoder is given in training, on the CPU where it can be drawn there.

        Args:
            words, valid: Of the targets, (B, T).
            memory: Of the sources.
            count: Words of each target (B,), on the CPU.
        """
        unknown = 1 + (torch.rand(len(count)) * count).long()
        return some(padding_mask(count, words.shape[1]), count - unknown)

    def _losses(self, batch: dict[str, Any], smoothing: float) -> tuple[Tensor, Tensor]:
        """Loss of every unknown word, then of every length; which unknown words are right."""
        words, valid = self._words(batch["target"])
        read, count = self._sizes(batch)
        memory = self._memory(batch["source"])
        known = (
            self._known(words, valid, memory, count) if self.training else torch.zeros(words.shape, dtype=torch.bool)
        )
        # numbers of places, not a mask as index: where the host knows how many there are, it need not wait
        asked = (padding_mask(count, words.shape[1]).to(known.device) & ~known).flatten().nonzero().squeeze(1)
        known, asked, lengths = (
            part.to(words.device, non_blocking=True) for part in (known, asked, self.predictor.classes(read, count))
        )
        logits = self.net.logits(self._say(words, known, valid, memory).flatten(0, 1).index_select(0, asked))
        gold = words.flatten().index_select(0, asked)
        losses = smoothed_cross_entropy(logits, gold, smoothing)
        surprise = F.cross_entropy(self.predictor(memory).float(), lengths, reduction="none")
        return torch.cat([losses, surprise]), logits.argmax(1) == gold

    def _say(self, words: Tensor, known: Tensor, valid: Tensor, memory: Memory) -> Tensor:
        """States (B, T, D) of words (B, T) of which only some are known."""
        return self.net.decode(self.unknown(self.net.embed(words), known), memory, valid)

    def _states(self, source: Tensor, target: Tensor) -> Tensor:
        """Of target words where none is known."""
        valid = target != self.ends.pad
        return self._say(target, ~valid, valid, self._memory(source))

    def _best(self, source: Tensor, candidates: int) -> list[list[int]]:
        """Words of the best translation of each source (B, S)."""
        mask = source != self.ends.pad
        candidates = min(candidates, 2 * self.predictor.reach + 1)  # the predictor knows no more lengths
        found = mask_predict(
            self.net, self.unknown, self.predictor, source, mask, self.ends, self.iterations, candidates, self.rescorer
        )
        return [best.tokens for best, *_ in found]

    def translate(self, source: Tensor, beam: int | None = None) -> list[str]:
        """The best translation of each source (B, S), as cleaned text; beam is how many lengths are tried."""
        return [self.text(tokens) for tokens in self._best(source, beam or self.candidates)]

    def _spoken(self, source: Tensor) -> list[int]:
        """Words of a translation of the source (S,)."""
        return self._best(source.unsqueeze(0), self.candidates)[0]

    @torch.no_grad()
    def drafts(self, source: Tensor) -> list[Draft]:
        """What mask-predict says of a source (S,) in every iteration, at the length of its best translation."""
        valid = torch.ones(1, len(self._spoken(source)), dtype=torch.bool, device=source.device)
        memory = self._memory(source.unsqueeze(0))
        return list(refine(self.net, self.unknown, memory, valid, self.ends, self.iterations))

    def draw(self) -> dict[str, Figure]:
        """Those of the Translator, and the iterations of mask-predict on one sentence."""
        figures = super().draw()
        if self._shown is None or self.iterations == 1:
            return figures
        training = self.training
        self.eval()
        drafts = self.drafts(self._shown.to(self.device))
        self.train(training)
        rows = [[self.pieces.id_to_piece(word) for word in draft.words[0].tolist()] for draft in drafts]
        asked = [draft.asked[0].tolist() for draft in drafts]
        return figures | {"iterations": drafts_grid(rows, asked, self.text(self._shown.tolist()))}


class OneShotTranslator(MaskedTranslator):
    """All words at once, as many as the length predictor says, none of them known (Gu et al. 2018, arXiv 1711.02281).

    Instead of fertilities the decoder reads one vector for all words, beside their positions. With `glance` some words
    are known in training all the same: the more, the more the network gets wrong (Qian et al. 2021, arXiv 2008.07905).

    Args:
        optimizer, net, label_smoothing, candidates, start: As of MaskedTranslator.
        glance: Share of the wrong words of a first pass that so many words, drawn evenly, are given for the second,
            which is learned from; 0: there is but one pass.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[[int], Seq2Seq] | None = None,
        label_smoothing: float = 0.1,
        candidates: int = 5,
        glance: float = 0.0,
        start: str | None = None,
    ) -> None:
        super().__init__(optimizer, net, label_smoothing, 1, candidates, start)
        _check_share(glance)
        self.glance = glance

    def _known(self, words: Tensor, valid: Tensor, memory: Memory, count: Tensor) -> Tensor:
        """Which words (B, T) the decoder is given in training; with `glance` known on the device alone: a wait."""
        if not self.glance:
            return torch.zeros(words.shape, dtype=torch.bool)
        places = flat_places(count, words.shape[1]).to(words.device, non_blocking=True)
        with torch.no_grad():
            states = self._say(words, torch.zeros_like(valid), valid, memory).flatten(0, 1).index_select(0, places)
            said = torch.full_like(words, self.ends.pad).flatten()
            said = said.index_copy(0, places, self.net.logits(states).argmax(1)).view_as(words)
        return some(valid, (self.glance * (said != words).sum(1)).long())


class LongOutputTranslator(ParallelTranslator):
    """A long output all at once, cut after its first END: no length has to be known.

    There are as many places as a search token by token may take steps, a number that the source decides. What stands
    after END is not learned, and words of a target beyond the last place are not either.

    Args:
        optimizer, net, label_smoothing, start: As of ParallelTranslator.
    """

    def build(self, facts: dict[str, Any]) -> None:
        """Create network, tokenizer and metrics."""
        super().build(facts)
        self.unknown = UnknownWords(self.net.d_model)

    def _states(self, source: Tensor, target: Tensor) -> Tensor:
        """Of all places that the source (B, S) has, (B, L, D), whatever the target is."""
        return long_states(self.net, self.unknown, source, source != self.ends.pad, self.ends)[0]

    def _losses(self, batch: dict[str, Any], smoothing: float) -> tuple[Tensor, Tensor]:
        """Loss (n,) of every word and EOS, and whether the likeliest word was right (n,)."""
        source, target = batch["source"], batch["target"]
        read, count = self._sizes(batch)
        mask = source != self.ends.pad
        states, limits = long_states(self.net, self.unknown, source, mask, self.ends, read.tolist())
        shared = min(target.shape[1], states.shape[1])
        asked = flat_places(torch.minimum(count + 1, torch.tensor(limits)), shared)
        asked = asked.to(source.device, non_blocking=True)
        logits = self.net.logits(states[:, :shared].flatten(0, 1).index_select(0, asked))
        gold = target[:, :shared].flatten().index_select(0, asked)
        return smoothed_cross_entropy(logits, gold, smoothing), logits.argmax(1) == gold

    def translate(self, source: Tensor, beam: int | None = None) -> list[str]:
        """What is said of each source (B, S), as cleaned text; there is nothing to search for with a beam."""
        outputs = long_outputs(self.net, self.unknown, source, source != self.ends.pad, self.ends)
        return [self.text(cut(output, self.ends.eos)) for output in outputs]

    def _spoken(self, source: Tensor) -> list[int]:
        """The output for the source (S,), with what stands after END."""
        return long_outputs(self.net, self.unknown, source.unsqueeze(0), None, self.ends)[0]


class CTCTranslator(ParallelTranslator):
    """Words and blanks in more places than there are words (Libovický and Helcl 2018, arXiv 1811.04719).

    The decoder reads the encoder's states, some places for each token. The blank is the padding, which is no word and
    has a row in the tables all the same. Sentences that have too few places are neither learned from nor judged by
    the loss.

    With `glance` some places are given in training what they should say (Gu and Kong 2021, arXiv 2012.15833, "glancing
    targets"): the more, the more differ from the likeliest path that spells the target.

    Args:
        optimizer, net, start: As of ParallelTranslator.
        upsampling: Places for each source token. Two are enough for 9,999 of 10,000 English sentences of the course's
            kind and their Chinese, and for 99 of 100 the other way round, where three are better.
        glance: Share of the wrong places of a first pass that so many places, drawn evenly, are told for the second,
            which is learned from; 0: there is but one pass.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[[int], Seq2Seq] | None = None,
        upsampling: int = 2,
        glance: float = 0.0,
        start: str | None = None,
    ) -> None:
        super().__init__(optimizer, net, 0.0, start)
        if upsampling < 1:
            raise MisconfigurationException(f"model.upsampling is {upsampling}: expected 1 or more")
        _check_share(glance)
        self.ratio, self.glance = upsampling, glance

    def build(self, facts: dict[str, Any]) -> None:
        """Create network, tokenizer and metrics."""
        super().build(facts)
        if self.net.max_length is not None and self.net.max_length < self.ratio * facts["max_length"]:
            raise MisconfigurationException(
                f"model.net.max_length is {self.net.max_length}, but {facts['max_length']} tokens have "
                f"{self.ratio * facts['max_length']} places; raise it, or lower data.max_length"
            )
        self.upsampling = Upsampling(self.net.d_model, self.ratio)
        if not self.glance and self.net.target_table is not self.net.output_table:
            self.net.target_table.requires_grad_(False)  # never read; DDP stops where a gradient is missing

    def _states(self, source: Tensor, target: Tensor) -> Tensor:
        """Of all places that the source (B, S) has, (B, ratio S, D), whatever the target is."""
        memory = self._memory(source)
        places, valid = self.upsampling(memory)
        return self.net.decode(places, memory, valid)

    def _losses(self, batch: dict[str, Any], smoothing: float) -> tuple[Tensor, Tensor]:
        """Loss (n,) of every word: that of its sentence, shared out evenly. No word is right or wrong by itself.

        Of a sentence with too few places it is 0 in training; in judging there is none.
        """
        source, blank = batch["source"], self.ends.pad
        words, valid = self._words(batch["target"])
        memory = self._memory(source)
        read, mask = self.upsampling(memory)
        lengths, said = self._sizes(batch)
        places, count = (part.to(source.device, non_blocking=True) for part in (self.ratio * lengths, said))
        if self.training and self.glance:
            with torch.no_grad():
                first = self.net.logits(self.net.decode(read, memory, mask))
                told = alignment(first, places, words, count, blank)
                wrong = (first.argmax(2) != told) & mask
            known = some(mask, (self.glance * wrong.sum(1)).long())
            read = self.net.embed(told).where(known.unsqueeze(2), read)
        logits = self.net.logits(self.net.decode(read, memory, mask))
        losses = ctc_losses(logits, self.ratio * lengths, words, said, blank)
        shares, total = losses / count.clamp(min=1), int(said.sum())
        if not self.training:
            enough = fits(places, words, count)
            shares, count = shares[enough], count[enough]
            total = int(count.sum())
        return shares.repeat_interleave(count, output_size=total), valid.new_zeros(0)

    def translate(self, source: Tensor, beam: int | None = None) -> list[str]:
        """What the likeliest path of each source (B, S) stands for, as cleaned text; there is no beam."""
        paths = ctc_paths(self.net, self.upsampling, source, source != self.ends.pad, self.ends)
        return [self.text(collapse(path, self.ends.pad)) for path in paths]

    def _spoken(self, source: Tensor) -> list[int]:
        """The likeliest path of the source (S,)."""
        return ctc_paths(self.net, self.upsampling, source.unsqueeze(0), None, self.ends)[0]
