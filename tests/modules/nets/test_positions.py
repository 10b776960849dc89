"""Positions against their formulas, written out one number at a time."""

import math

import pytest
import torch

from modules.nets.attention import MultiHeadAttention
from modules.nets.positions import LearnedPositions, RelativePositions, absolute_positions, sinusoid


def sine(position, column, d_model):
    """PE(position, column) of Vaswani et al. 2017, section 3.5."""
    angle = position / 10000 ** (2 * (column // 2) / d_model)
    return math.cos(angle) if column % 2 else math.sin(angle)


@pytest.mark.parametrize("d_model", [1, 2, 7, 8])
@pytest.mark.parametrize("offset", [0, 3, 5000])
def test_sinusoidal(d_model, offset):
    x = torch.randn(2, 4, d_model, dtype=torch.float64)
    expected = torch.tensor([[sine(offset + t, c, d_model) for c in range(d_model)] for t in range(4)])
    module = absolute_positions("sinusoidal", d_model, 1)
    torch.testing.assert_close(module(x, offset) - x, expected.double().expand(2, -1, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(module(x.float(), offset), module(x, offset).float(), atol=1e-3, rtol=0)
    assert not module.state_dict()


def test_sinusoidal_in_bfloat16_tells_late_frames_apart():
    x = torch.zeros(1, 600, 4, dtype=torch.bfloat16)
    out = absolute_positions("sinusoidal", 4, 1)(x)
    assert out.dtype == torch.bfloat16
    assert (out[0, 1:, 0] != out[0, :-1, 0]).float().mean() > 0.9


def test_learned():
    module = absolute_positions("learned", 3, 6)
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(module(x), x + module.table[:4])
    torch.testing.assert_close(module(x, 2), x + module.table[2:])
    with pytest.raises(ValueError, match=r"a sequence of 7 is longer than the 6 learned positions \(max_length\)"):
        module(x, 3)
    module(x, 1).sum().backward()
    assert module.table.grad.tolist() == [[0.0] * 3, *[[2.0] * 3] * 4, [0.0] * 3]


def test_none():
    x = torch.randn(2, 4, 3)
    assert absolute_positions("none", 3, 1)(x, 7) is x


@pytest.mark.parametrize("kind", ["sinusoidal", "learned", "none"])
def test_step_by_step_equals_at_once(kind):
    module, x = absolute_positions(kind, 6, 5), torch.randn(2, 5, 6)
    steps = torch.cat([module(x[:, t : t + 1], offset=t) for t in range(5)], 1)
    torch.testing.assert_close(steps, module(x))
    assert isinstance(module, LearnedPositions) == (len(list(module.parameters())) == 1)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_relative_scores_are_the_four_terms_of_transformer_xl(length):
    torch.manual_seed(0)
    d, heads, width = 6, 2, 3
    attention = MultiHeadAttention(d, heads, relative=RelativePositions(d, heads)).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, length, d, dtype=torch.float64)
    weights = attention.weights(x)
    relative = attention.relative
    u, v, w_r = relative.content_bias[:, 0], relative.position_bias[:, 0], relative.project.weight
    rows = x[0] @ attention.in_proj_weight.T + attention.in_proj_bias
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        q, k = rows[:, :d][:, part], rows[:, d : 2 * d][:, part]
        scores = torch.empty(length, length, dtype=torch.float64)
        for i in range(length):
            for j in range(length):
                r = w_r @ torch.tensor([sine(i - j, c, d) for c in range(d)], dtype=torch.float64)
                terms = q[i] @ k[j], q[i] @ r[part], u[h] @ k[j], v[h] @ r[part]  # (a), (b), (c), (d) of the paper
                scores[i, j] = sum(terms) / math.sqrt(width)
        torch.testing.assert_close(weights[0, h], scores.softmax(-1), atol=1e-9, rtol=1e-7)


def test_sinusoid_of_a_negative_distance():
    ours = sinusoid(torch.tensor([-3.0, 3.0]), 4)
    torch.testing.assert_close(ours[0], ours[1] * torch.tensor([-1.0, 1.0, -1.0, 1.0]))
