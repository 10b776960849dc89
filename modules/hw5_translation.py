"""HW5: English to Chinese, or back: a translator, its loss, scheduled sampling in training, BLEU in judging."""

import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from modules.base import HomeworkModule
from modules.cast_weights import weights_cast_once
from modules.first_weights import load_first_weights
from modules.nets.recurrent_seq2seq import SourceAttention
from modules.nets.seq2seq import Memory, Seq2Seq, TransformerSeq2Seq
from modules.nets.transformer import DecoderLayer
from modules.objectives import SequenceObjective
from modules.pictures.translators import bleu_by_length, cross_attention_maps, position_similarity
from modules.translation.detokenize import RESTORE, one_line
from modules.translation.losses import linear_cross_entropy, smoothed_cross_entropy
from modules.translation.rewards import Score, SentenceReward
from modules.translation.scheduled_sampling import OwnWords, by_steps, in_passes
from modules.translation.scores import CorpusScore
from modules.translation.search import Ends, beam_search, draw_outputs, greedy

SHOWN = 20  # samples of a validation
DRAWN = 128  # positions in the picture of their similarity
LONGEST = 30  # pieces of the sentence in the picture of attention


class Translator(HomeworkModule):
    """Label-smoothed cross-entropy of the next word; BLEU of what is said without the truth at hand.

    Validation translates a fixed subset greedily (val/bleu, which chooses the checkpoint) and takes the loss of all;
    test searches with a beam. Scores are sacrebleu's on the cleaned text, as the course's; test/bleu_raw compares
    restored text with the reference as it stands in the file.

    Args:
        optimizer: See HomeworkModule.
        net: Called with the size of the vocabulary, a Seq2Seq. Default: TransformerSeq2Seq.
        label_smoothing: Share of the target spread evenly over the vocabulary.
        sampling: How the decoder reads its own words where `teacher_forcing` is below 1 (the ScheduledSampling callback
            sets it): token by token, or in whole passes (modules/translation/scheduled_sampling.py).
        own_words: Which words of its own it reads.
        passes: Of the decoder, with sampling: passes.
        beam: Hypotheses kept in test and prediction.
        length_penalty: Hypotheses are ranked by log-probability / length ^ this.
        no_repeat: No n-gram of so many tokens comes twice in a translation, 3 for instance; 0 allows all.
        objective: A loss of whole outputs that joins the cross-entropy (modules/objectives.py); null: there is none.
        start: Checkpoint, or folder of a run, whose weights a new fit begins with; null: random ones.
    """

    homework: ClassVar[str] = "hw5_translation"
    monitor: ClassVar[str] = "val/bleu"
    mode: ClassVar[str] = "max"

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[[int], Seq2Seq] | None = None,
        label_smoothing: float = 0.1,
        sampling: Literal["passes", "steps"] = "passes",
        own_words: OwnWords = "argmax",
        passes: int = 2,
        beam: int = 5,
        length_penalty: float = 1.0,
        no_repeat: int = 0,
        objective: SequenceObjective | None = None,
        start: str | None = None,
    ) -> None:
        super().__init__(optimizer)
        if not 0 <= label_smoothing < 1:
            raise MisconfigurationException(f"model.label_smoothing is {label_smoothing}: expected 0 or more, below 1")
        if beam < 1 or passes < 2:
            raise MisconfigurationException(f"model.beam is {beam}, model.passes {passes}: expected at least 1 and 2")
        if no_repeat < 0:
            raise MisconfigurationException(f"model.no_repeat is {no_repeat}: expected 0 or more")
        self.save_hyperparameters(ignore=["optimizer", "net", "objective"])
        self.new_net: Callable[[int], Seq2Seq] = net or TransformerSeq2Seq
        self.label_smoothing, self.beam, self.length_penalty = label_smoothing, beam, length_penalty
        self.no_repeat = no_repeat
        self.sampling, self.own_words, self.passes = sampling, own_words, passes
        self.objective, self.start = objective, start
        self.teacher_forcing: float | None = 1.0
        self.others: list[Seq2Seq] = []
        """Further networks whose probabilities are averaged with this one's; `leeml translate` sets them."""
        self.decoding_seconds = 0.0
        """Spent on the translations of validations so far; the TimeSpent callback tells them from the rest."""
        self._said: list[tuple[str, str, str]] = []  # source, reference and output
        self._shown: Tensor | None = None  # a source (S,)

    def build(self, facts: dict[str, Any]) -> None:
        """Create network, tokenizer and metrics."""
        self.net = self.new_net(facts["vocabulary"])
        limit = self.net.max_length
        if limit is not None and limit < facts["max_length"]:
            raise MisconfigurationException(
                f"model.net.max_length is {limit}, but a sentence of the data has {facts['max_length']} tokens; raise "
                "it, or lower data.max_length"
            )
        self.pieces = SentencePieceProcessor(model_proto=facts["tokenizer"].numpy().tobytes())
        self.ends = Ends(facts["pad"], facts["bos"], facts["eos"])
        self.language: str = facts["target"]
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_bleu, self.test_bleu = CorpusScore("bleu", self.language), CorpusScore("bleu", self.language)
        self.test_bleu_raw, self.test_chrf = CorpusScore("bleu", self.language), CorpusScore("chrf", self.language)
        self.rewards = {kind: SentenceReward(kind, self.language) for kind in get_args(Score)}

    def configure_model(self) -> None:
        """Build; a fit that resumes no other begins with the weights of `start`."""
        new = not self.built
        super().configure_model()
        if not new or self.facts is None or self._trainer is None or self.trainer.state.fn != "fit":
            return
        if self.start is not None:
            same = ["source", "target", "tokenizer"]
            load_first_weights(self, self.homework, self.facts, self.start, same, shared=["net"])
        elif self.objective is not None:
            rank_zero_warn(
                "model.objective: this fit begins with random weights, whose outputs hardly ever earn a reward; name a "
                "run trained on cross-entropy with --model.start"
            )

    def on_fit_start(self) -> None:
        """Say how BLEU is computed, which a score without its signature does not tell."""
        rank_zero_info(f"BLEU by sacrebleu: {self.val_bleu.signature}")
        for logger in self.trainer.loggers:
            logger.log_hyperparams({"bleu_signature": self.val_bleu.signature})

    def on_test_start(self) -> None:
        """Say how the scores of a test are computed."""
        super().on_test_start()
        rank_zero_info(f"sacrebleu: BLEU {self.test_bleu.signature}, chrF {self.test_chrf.signature}")

    # training

    def _memory(self, source: Tensor) -> Memory:
        return self.net.encode(source, source != self.ends.pad)

    def _states(self, source: Tensor, target: Tensor) -> Tensor:
        """States (B, T, D) that each word of the target (B, T) is to be said from."""
        before = torch.cat([torch.full_like(target[:, :1], self.ends.bos), target[:, :-1]], 1)
        memory = self._memory(source)
        if not self.training or self.teacher_forcing is None or self.teacher_forcing >= 1:
            return self.net.decode(self.net.embed(before), memory)
        if self.sampling == "steps":
            return by_steps(self.net, before, memory, self.teacher_forcing, self.own_words)
        return in_passes(self.net, before, memory, self.teacher_forcing, self.own_words, self.passes)

    def _asked(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """States (n, D) that the valid target tokens are to be said from, and these tokens (n,)."""
        target, places = batch["target"], batch["places"]
        states = self._states(batch["source"], target).flatten(0, 1).index_select(0, places)
        return states, target.flatten().index_select(0, places)

    def _losses(self, batch: dict[str, Any], smoothing: float) -> tuple[Tensor, Tensor]:
        """Loss (n,) of every valid target token, and whether the likeliest word was right (n,)."""
        states, gold = self._asked(batch)
        logits = self.net.logits(states)
        return smoothed_cross_entropy(logits, gold, smoothing), logits.argmax(1) == gold

    def _sum_of_losses(self, batch: dict[str, Any]) -> tuple[Tensor, int, Tensor]:
        """Sum and number of the losses of training, and whether the likeliest words were right."""
        losses, right = self._losses(batch, self.label_smoothing)
        return losses.sum(), len(losses), right

    def _training_losses(self, batch: dict[str, Any]) -> tuple[Tensor, int, Tensor]:
        """As `_sum_of_losses`, with the product before the loss where the network has such a one."""
        weight = self.net.output_weight
        if weight is None:
            return self._sum_of_losses(batch)
        states, gold = self._asked(batch)
        total, right = linear_cross_entropy(states, weight, gold, self.label_smoothing)
        return total, len(gold), right

    @weights_cast_once
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean over the valid tokens of all ranks."""
        total, count, right = self._training_losses(batch)
        if self.objective is not None:
            total = self.objective.mixed(self._sequence_loss(self.objective, batch), total)
        return self.track(self.global_mean(total, count), right)

    def _sequence_loss(self, objective: SequenceObjective, batch: dict[str, Any]) -> Tensor:
        """Sum over the sentences of the loss of whole outputs; rewarded is the text that validation would judge."""
        source, target = batch["source"], batch["target"]
        references = [self.text(tokens) for tokens in target.tolist()]

        def scores(outputs: list[list[list[int]]], kind: Score) -> Tensor:
            return self.rewards[kind]([[self.text(tokens) for tokens in group] for group in outputs], references)

        found = objective(
            self.net, source, source != self.ends.pad, self.ends, lambda outputs: scores(outputs, objective.reward)
        )
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            other: Score = "chrf" if objective.reward == "bleu" else "bleu"  # should rise with the reward
            said, there = (tokens != self.ends.pad for tokens in (found.tokens, target))
            seen = found.seen | {
                other: scores(found.tokens.tolist(), other).mean().to(self.device),
                "length_ratio": said.sum() / there.sum() / said.shape[1],
            }
            self.log_dict({f"train/{name}": value for name, value in seen.items()}, sync_dist=True)
        return found.losses.sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the gradient's norm before it is clipped (a question of the course's report)."""
        super().on_before_optimizer_step(optimizer)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            self.log("gradient_norm", norm)

    # judging

    def text(self, tokens: list[int]) -> str:
        """Words of token numbers, in one line."""
        return one_line(self.pieces.decode(tokens))

    def translate(self, source: Tensor, beam: int | None = None) -> list[str]:
        """The best translation of each source (B, S), as cleaned text; beam 1 is greedy."""
        nets, mask, beam = [self.net, *self.others], source != self.ends.pad, beam or self.beam
        if beam == 1:
            found = greedy(nets, source, mask, self.ends, no_repeat=self.no_repeat)
        else:
            found = beam_search(nets, source, mask, self.ends, beam, 1, self.length_penalty, no_repeat=self.no_repeat)
        return [self.text(best.tokens) for best, *_ in found]

    def sampled(self, source: Tensor) -> list[str]:
        """A translation of each source (B, S), drawn word by word from the probabilities, as cleaned text."""
        drawn = draw_outputs([self.net, *self.others], source, source != self.ends.pad, self.ends)
        return [self.text(tokens) for tokens in drawn.tokens[:, 0].tolist()]

    def _log_loss(self, batch: dict[str, Any], name: str, metric: MeanMetric) -> None:
        losses, _ = self._losses(batch, 0.0)
        metric.update(losses)
        self.log(f"{name}/loss", metric, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["row"]))

    def _keep(self, batch: dict[str, Any], chosen: list[int], said: list[str]) -> None:
        self._said += [(batch["text"][i], batch["reference"][i], text) for i, text in zip(chosen, said, strict=True)]
        if self._shown is None:
            lengths = (batch["source"] != self.ends.pad).sum(1)
            longest = int(lengths.where(lengths <= LONGEST, 0).argmax())
            self._shown = batch["source"][longest, : int(lengths[longest])]

    def on_validation_epoch_start(self) -> None:
        """Forget the translations of the epoch before."""
        self._said, self._shown = [], None

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Cross-entropy of a token of all pairs held out; BLEU of the quick subset, translated greedily."""
        self._log_loss(batch, "val", self.val_loss)
        chosen = batch["quick"].nonzero().squeeze(1).tolist()
        if chosen:
            start = time.perf_counter()
            said = self.translate(batch["source"][chosen], 1)
            self.decoding_seconds += time.perf_counter() - start
            self.val_bleu.update(said, [batch["reference"][i] for i in chosen])
            self._keep(batch, chosen, said)
        self.log("val/bleu", self.val_bleu, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["row"]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Cross-entropy, and BLEU and chrF of what the beam finds."""
        self._log_loss(batch, "test", self.test_loss)
        said = self.translate(batch["source"])
        self.test_bleu.update(said, batch["reference"])
        self.test_chrf.update(said, batch["reference"])
        restored = [RESTORE[self.language](text) for text in said]
        self.test_bleu_raw.update(restored, batch["raw_reference"])
        scores = {"test/bleu": self.test_bleu, "test/bleu_raw": self.test_bleu_raw, "test/chrf": self.test_chrf}
        self.log_dict(scores, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(said))
        self._keep(batch, list(range(len(said))), said)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Row numbers (B,) and translations, as cleaned text."""
        return {"row": batch["row"], "text": self.translate(batch["source"])}

    # pictures

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # hooks look into the network
    def attention(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What every step of a target (T,) looks at in its source (S,): decoder layer -> (heads, T, S)."""
        found: dict[str, Tensor] = {}
        parts: list[Any] = [m.multihead_attn for m in self.net.modules() if isinstance(m, DecoderLayer)]
        parts += [m for m in self.net.modules() if isinstance(m, SourceAttention)]
        hooks = []
        for number, part in enumerate(parts, 1):

            def keep(module: Any, args: tuple[Any, ...], layer: str = f"layer {number}") -> None:
                weights = module.weights(*args)[0].float().cpu()
                found[layer] = weights if weights.ndim == 3 else weights.unsqueeze(0)

            hooks.append(part.register_forward_pre_hook(keep))
        self._states(source.unsqueeze(0), target.unsqueeze(0))
        for hook in hooks:
            hook.remove()
        return found

    def _spoken(self, source: Tensor) -> list[int]:
        """Tokens of a translation of the source (S,), for the picture of what each looked at."""
        best = greedy([self.net], source.unsqueeze(0), None, self.ends)[0][0]
        return [*best.tokens, self.ends.eos]

    def draw(self) -> dict[str, Figure]:
        """Attention of one translation, BLEU by length, and how alike the position vectors are."""
        if not self._said or self._shown is None:
            return {}
        training = self.training
        self.eval()
        source = self._shown.to(self.device)
        target = torch.tensor(self._spoken(source), device=self.device)
        names = [[self.pieces.id_to_piece(t) for t in side.tolist()] for side in (source, target)]
        sources, references, said = (list(part) for part in zip(*self._said, strict=True))
        figures = {
            "attention": cross_attention_maps(self.attention(source, target), names[0], names[1]),
            "bleu_by_length": bleu_by_length(sources, said, references, self.language),
        }
        if isinstance(self.net, TransformerSeq2Seq):
            count = min(DRAWN, self.net.max_length or DRAWN)
            none = torch.zeros(1, count, self.net.d_model, device=self.device)
            with torch.no_grad():
                vectors = self.net.positions(none)[0].cpu()
            if vectors.any():  # else the net knows no positions
                figures["position_similarity"] = position_similarity(vectors)
        self.train(training)
        return figures

    def samples(self) -> tuple[list[str], list[list[str]]]:
        """Source, reference and output of some pairs judged last."""
        return ["source", "reference", "output"], [list(row) for row in self._said[:SHOWN]]
