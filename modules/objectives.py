"""Training a translator on a reward for whole outputs, such as BLEU, which has no gradient in the words.

What is made larger is the expected reward sum_y p(y | x) r(y). Outputs y are drawn from the network without gradients;
one pass with gradients gives their log-probabilities. Each loss is mixed with cross-entropy (Ranzato et al. 2016, arXiv
1511.06732), without which the network forgets to speak well where the reward does not look.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from modules.nets.seq2seq import Seq2Seq
from modules.translation.rewards import Score
from modules.translation.search import Ends, draw_outputs, greedy

Reward = Callable[[list[list[list[int]]]], Tensor]
"""For each of B sentences n outputs, tokens with or without EOS and padding -> (B, n), such as BLEU."""


@contextmanager
def without_dropout(net: nn.Module) -> Iterator[None]:
    """The network as it is in test: what samples is then what is scored, and what is trained is what will be used."""
    training = net.training
    net.eval()
    try:
        with torch.backends.cudnn.flags(enabled=False):  # whose recurrent layers have no gradient in eval mode
            yield
    finally:
        net.train(training)


def log_probabilities(
    net: Seq2Seq, source: Tensor, mask: Tensor | None, tokens: Tensor, ends: Ends, temperature: float = 1.0
) -> Tensor:
    """Log-probability (B, n, T) of every token of outputs (B, n, T), as `draw_outputs` draws it, with gradients.

    Padding and BOS have no probability and what remains sums to 1. A token that could not be another counts 0: the EOS
    at the limit, and padding. The sum over T is the log-probability of an output; all outputs' probabilities sum to 1.

    Args:
        net: The translator, encoding each source once for all its outputs.
        source: (B, S).
        mask: (B, S), True = valid; None: all.
        tokens: Words and EOS, then padding.
        ends: Those of sampling.
        temperature: That of sampling.
    """
    count, outputs, length = tokens.shape
    limits = torch.tensor(ends.limits([net], source, mask), device=tokens.device)
    free = (tokens != ends.pad) & (torch.arange(1, length + 1, device=tokens.device) < limits.view(-1, 1, 1))
    before = torch.cat([torch.full_like(tokens[..., :1], ends.bos), tokens[..., :-1]], 2).flatten(0, 1)
    state = net.start(net.encode(source, mask))
    state.reorder(torch.arange(count, device=tokens.device).repeat_interleave(outputs))
    states = net.step(net.embed(before), state)  # all steps at once
    logits = net.logits(states[free.flatten(0, 1)]).float().div_(temperature)
    logits[:, [ends.pad, ends.bos]] = -torch.inf
    logs = -F.cross_entropy(logits, tokens[free], reduction="none")
    return torch.zeros(tokens.shape, device=tokens.device).masked_scatter(free, logs)


class SequenceLosses(NamedTuple):
    """What an objective makes of one batch of B sentences."""

    losses: Tensor
    """(B,), of each sentence."""
    tokens: Tensor
    """(B, n, T), the drawn outputs."""
    seen: dict[str, Tensor]
    """What is logged, name -> ()."""


class SequenceObjective(ABC):
    """(1 - weight) x a loss of whole outputs + weight x cross-entropy, both summed over a sentence.

    Args:
        samples: n, outputs drawn for each sentence.
        weight: Of cross-entropy, from 0 to 1. Its gradient is some twenty times as long as that of a reward between 0
            and 1, hence the small default (GNMT has 0.017: Wu et al. 2016, arXiv 1609.08144).
        reward: Of an output: bleu or chrf, from 0 to 1 (modules/translation/rewards.py).
        temperature: Divides the logits, in drawing and in the loss: the reward expected is that of such outputs. Label
            smoothing leaves a flat distribution, whose outputs earn far less than the greedy output at 1.
    """

    fewest: int = 1
    """Outputs of a sentence that the loss needs, at least."""
    with_greedy: bool = False
    """Whether the greedy output is wanted too."""

    def __init__(
        self,
        samples: int = 4,
        weight: float = 0.02,
        reward: Score = "bleu",
        temperature: float = 1.0,
    ) -> None:
        if samples < self.fewest:
            raise MisconfigurationException(f"model.objective.samples is {samples}: expected at least {self.fewest}")
        if not 0 <= weight <= 1:
            raise MisconfigurationException(f"model.objective.weight is {weight}: expected 0 to 1")
        if temperature <= 0:
            raise MisconfigurationException(f"model.objective.temperature is {temperature}: expected a positive number")
        self.samples, self.weight, self.reward, self.temperature = samples, weight, reward, temperature

    @abstractmethod
    def losses(
        self, tokens: Tensor, logs: Tensor, rewards: Tensor, greedy_reward: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss of every sentence (B,), and advantages (B, n): how much better than expected each output is.

        Args:
            tokens: (B, n, T), with EOS and padding.
            logs: Log-probabilities of the outputs (B, n), with gradients.
            rewards: (B, n).
            greedy_reward: (B,) where `with_greedy` is set.
        """

    def mixed(self, sequences: Tensor, words: Tensor) -> Tensor:
        """Sums over sentences of the loss of outputs and of the cross-entropy of words, () each -> their mixture ()."""
        return (1 - self.weight) * sequences + self.weight * words

    def __call__(self, net: Seq2Seq, source: Tensor, mask: Tensor | None, ends: Ends, reward: Reward) -> SequenceLosses:
        """Draw, reward and judge outputs of sources (B, S), mask (B, S)."""
        with without_dropout(net):
            tokens = draw_outputs([net], source, mask, ends, self.samples, self.temperature).tokens
            outputs = tokens.tolist()
            if self.with_greedy:
                for group, (best,) in zip(outputs, greedy([net], source, mask, ends), strict=True):
                    group.append(best.tokens)
            rewards = reward(outputs).to(source.device)
            logs = log_probabilities(net, source, mask, tokens, ends, self.temperature).sum(2)
        sampled, best_reward = rewards[:, : self.samples], rewards[:, -1] if self.with_greedy else None
        losses, advantages = self.losses(tokens, logs, sampled, best_reward)
        seen = {
            "reward": sampled.mean(),
            "reward_variance": sampled.var(correction=0),
            "advantage_variance": advantages.var(correction=0),
            "entropy": -logs.detach().sum() / (tokens != ends.pad).sum(),  # a token, in nats
        }
        if best_reward is not None:
            seen["greedy_reward"] = best_reward.mean()
        return SequenceLosses(losses, tokens, seen)


class PolicyGradient(SequenceObjective):
    """REINFORCE (Williams 1992): -(r(y) - b) log p(y), the mean over samples y; its gradient is that of -E[r].

    A baseline b that does not depend on y leaves the mean of the gradient as it is and makes its variance smaller.

    Args:
        samples, weight, reward, temperature: As of SequenceObjective.
        baseline: greedy: the reward of the greedy output, which is self-critical sequence training (Rennie et al. 2017,
            arXiv 1612.00563); mean: of the sentence's other samples (Kool et al. 2019); null: none.
    """

    def __init__(
        self,
        samples: int = 4,
        weight: float = 0.02,
        reward: Score = "bleu",
        temperature: float = 1.0,
        baseline: Literal["greedy", "mean"] | None = "greedy",
    ) -> None:
        self.baseline, self.with_greedy = baseline, baseline == "greedy"
        self.fewest = 2 if baseline == "mean" else 1
        super().__init__(samples, weight, reward, temperature)

    def losses(
        self, tokens: Tensor, logs: Tensor, rewards: Tensor, greedy_reward: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rewards less the baseline times log-probabilities."""
        baseline: Any = 0.0
        if greedy_reward is not None:
            baseline = greedy_reward.unsqueeze(1)
        elif self.baseline == "mean":
            baseline = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        advantages = rewards - baseline
        return -(advantages * logs).mean(1), advantages


class MinimumRisk(SequenceObjective):
    """Minimum risk training (Shen et al. 2016, arXiv 1512.02433): sum_y Q(y) (1 - r(y)) over the distinct samples y.

    Q(y) = p(y)^alpha / sum of p(y')^alpha over the same samples; the reference is not put among them. With a small
    alpha the gradient is about alpha times that of PolicyGradient with the mean as baseline: cross-entropy then needs
    as much smaller a weight.

    Args:
        samples, weight, reward, temperature: As of SequenceObjective.
        alpha: Sharpness of Q: 0 would take all samples for equally likely; the paper has 0.005 and 100 samples.
    """

    fewest = 2

    def __init__(
        self,
        samples: int = 8,
        weight: float = 0.002,
        reward: Score = "bleu",
        temperature: float = 1.0,
        alpha: float = 0.05,
    ) -> None:
        if alpha <= 0:
            raise MisconfigurationException(f"model.objective.alpha is {alpha}: expected a positive number")
        super().__init__(samples, weight, reward, temperature)
        self.alpha = alpha

    def losses(
        self, tokens: Tensor, logs: Tensor, rewards: Tensor, greedy_reward: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The risk expected under Q."""
        same = (tokens.unsqueeze(2) == tokens.unsqueeze(1)).all(3)  # (B, n, n)
        again = same.tril(-1).any(2)
        shares = (self.alpha * logs).masked_fill(again, -torch.inf).softmax(1)
        advantages = rewards - (shares.detach() * rewards).sum(1, keepdim=True)
        return (shares * (1 - rewards)).sum(1), advantages
