"""Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099): in training the decoder now and then reads its own words.

Each word it reads is the gold one with probability p, else one of its own; the first is always BOS. `by_steps` is
the paper's, word after word. `in_passes` is made for the Transformer (Mihaylova and Martins 2019, arXiv 1906.07651): a
whole pass on gold words, then another on a mix of gold words and those that the first pass would have said.
"""

from typing import Literal

import torch
from torch import Tensor

from modules.nets.seq2seq import Memory, Seq2Seq

OwnWords = Literal["argmax", "sampled", "mixed"]


def own_vectors(net: Seq2Seq, states: Tensor, how: OwnWords) -> Tensor:
    """Word vectors (B, T, E) of what the decoder would say in states (B, T, D).

    Args:
        net: The translator.
        states: Of the steps before.
        how: argmax: the likeliest word; sampled: one drawn from the distribution; mixed: the mean of all words'
            vectors, weighted by their probabilities, which lets the gradient pass.
    """
    logits = net.logits(states)
    if how == "mixed":
        words = net.embed(torch.arange(logits.shape[-1], device=logits.device).unsqueeze(0))[0]
        return logits.softmax(-1) @ words
    if how == "argmax":
        return net.embed(logits.argmax(-1))
    drawn = logits.detach().flatten(0, 1).float().softmax(-1).multinomial(1)
    return net.embed(drawn.view(logits.shape[:2]))


def _mixed(gold: Tensor, own: Tensor, teacher_forcing: float) -> Tensor:
    """Gold vectors (B, T, E) with probability `teacher_forcing`, else own ones, each word by itself."""
    keep = torch.rand(gold.shape[:2], device=gold.device) < teacher_forcing
    return gold.where(keep.unsqueeze(2), own)


def in_passes(
    net: Seq2Seq, target: Tensor, memory: Memory, teacher_forcing: float, how: OwnWords, passes: int = 2
) -> Tensor:
    """States (B, T, D) of the last pass; each pass reads words of the one before. Gradients flow through the last only.

    Args:
        net: The translator.
        target: Gold words that come before each step, the first is BOS, (B, T).
        memory: Of the encoder.
        teacher_forcing: Probability of a gold word.
        how: See `own_vectors`; in a mixed pass the gradient reaches the first pass through the vectors.
        passes: 2 or more.
    """
    gold = net.embed(target)
    read = gold
    for _ in range(passes - 1):
        with torch.set_grad_enabled(how == "mixed" and torch.is_grad_enabled()):
            said = own_vectors(net, net.decode(read, memory)[:, :-1], how)
        read = torch.cat([gold[:, :1], _mixed(gold[:, 1:], said, teacher_forcing)], 1)
    return net.decode(read, memory)


def by_steps(net: Seq2Seq, target: Tensor, memory: Memory, teacher_forcing: float, how: OwnWords) -> Tensor:
    """States (B, T, D) of a decoder that reads word after word; arguments as in `in_passes`."""
    gold = net.embed(target)
    state, read, states = net.start(memory), gold[:, :1], []
    for t in range(target.shape[1]):
        states.append(net.step(read, state))
        if t + 1 < target.shape[1]:
            read = _mixed(gold[:, t + 1 : t + 2], own_vectors(net, states[-1], how), teacher_forcing)
    return torch.cat(states, 1)
