"""What studies record of their nets for the plays of the page, in a form that JSON can hold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modules.nets.mlp import MLP
from modules.nets.seq2seq import Seq2Seq, TransformerSeq2Seq
from modules.translation.search import Ends


def rounded(values: Tensor) -> Any:
    """Nested lists of four significant digits: enough for a picture, and short in a file."""
    if values.dim():
        return [rounded(part) for part in values]
    return float(f"{float(values):.4g}")


def sigmoids(net: MLP) -> dict[str, Any]:
    """The parts of y = b + sum of c sigmoid(w x + b_i): w, b and c of each sigmoid, and the bias of their sum."""
    hidden: Any = net[0].linear
    out: Any = net[1]
    parts = {"w": hidden.weight, "b": hidden.bias, "c": out.weight, "bias": out.bias}
    return {name: rounded(part.detach().flatten()) for name, part in parts.items()}


@torch.no_grad()
def attention_scores(net: TransformerSeq2Seq, source: Tensor, read: Tensor) -> list[list[list[float]]]:
    """Scores of the first decoder layer's self-attention in one sentence, before mask and softmax: (heads, T, T).

    Each row is less its logsumexp, which changes no softmax.

    Args:
        net: A translator in evaluation mode.
        source: (1, S).
        read: What the decoder reads, (1, T).
    """
    found: list[Tensor] = []
    attention: Any = net.decoder.layers[0].self_attn
    hook = attention.register_forward_pre_hook(lambda layer, args: found.append(layer.weights(args[0])))
    net(source, read)
    hook.remove()
    return rounded(found[0][0].clamp(min=1e-9).log())


@torch.no_grad()
def lattice(net: Seq2Seq, source: Tensor, ends: Ends, width: int, word: Callable[[int], str]) -> dict[str, Any]:
    """Every candidate that `beam_search` of one sentence looks at, step by step, and what became of it.

    Args:
        net: A translator in evaluation mode.
        source: (1, S), without padding.
        ends: Special tokens and limits.
        width: Beams.
        word: What a token is called.

    Returns:
        steps: For each step its candidates, likeliest first: from (the beam that it continues, counted among those
        that went on), word, score (sum of log-probabilities), fate ("goes on", "ends", "dropped"). ends: words and
        score (sum over length) of the finished hypotheses, the best first.
    """
    beams: list[tuple[list[int], float]] = [([ends.bos], 0.0)]
    steps: list[list[dict[str, Any]]] = []
    done: list[tuple[list[int], float]] = []
    limit = ends.limits([net], source, None)[0]
    while len(done) < width and len(steps) < limit:
        read = torch.tensor([words for words, _ in beams], device=source.device)
        logs = net(source.expand(len(beams), -1), read)[:, -1].float().log_softmax(-1)
        never = torch.zeros_like(logs[0], dtype=torch.bool)
        never[[ends.pad, ends.bos]] = True
        if len(steps) == limit - 1:
            never[:] = True
            never[ends.eos] = False
        sums = (torch.tensor([score for _, score in beams], device=logs.device)[:, None] + logs)[:, ~never]
        tokens = (~never).nonzero()[:, 0].tolist()
        values, places = sums.flatten().topk(min(2 * width, sums.numel()))
        candidates: list[dict[str, Any]] = []
        following: list[tuple[list[int], float]] = []
        for rank, (score, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            beam, token = place // len(tokens), tokens[place % len(tokens)]
            fate = "dropped"
            if token == ends.eos:
                if rank < width:
                    fate = "ends"
                    done.append((beams[beam][0][1:], score / len(beams[beam][0])))
            elif len(following) < width:
                fate = "goes on"
                following.append(([*beams[beam][0], token], score))
            candidates.append({"from": beam, "word": word(token), "score": round(score, 3), "fate": fate})
        steps.append(candidates)
        beams = following
    best = sorted(done, key=lambda found: -found[1])[:width]
    return {
        "width": width,
        "steps": steps,
        "ends": [{"words": [word(token) for token in words], "score": round(score, 3)} for words, score in best],
    }


@torch.no_grad()
def filters(module: Any, image: Tensor) -> dict[str, Any]:
    """The 3 x 3 filters that a one-layer net has learned, and an image to walk them over.

    Args:
        module: HW3's module, whose net begins with a layer with a weight (O, 27) and a bias (O, 1).
        image: (3, H, W) uint8.

    Returns:
        image and seen (the image as it goes into the net), (3, H, W); weight (O, 27), by channel, row, column; bias
        (O,).
    """
    layer = module.net[0]
    return {
        "image": image.tolist(),
        "seen": rounded(module.normalised(image[None])[0]),
        "weight": rounded(layer.weight),
        "bias": rounded(layer.bias[:, 0]),
    }
