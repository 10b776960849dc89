"""What studies record for the page: the same as the nets and searches themselves say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.nets.mlp import MLP
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.translation.search import Ends, beam_search
from scripts.studies.lab import recorded

ENDS = Ends(pad=0, bos=1, eos=2, ratio=1.0, extra=3.0)
seeds = st.integers(0, 10**6)


def translator(seed, causal=True):
    torch.manual_seed(seed)
    return TransformerSeq2Seq(9, 8, 2, 16, 1, dropout=0.0, causal=causal).eval()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, width=st.integers(1, 4))
def test_a_lattice_ends_in_what_beam_search_finds(seed, width):
    net, source = translator(seed), torch.tensor([[3, 4, 5, 2]])
    found = recorded.lattice(net, source, ENDS, width, str)
    (wanted,) = beam_search([net], source, None, ENDS, width, width)
    assert [[int(word) for word in end["words"]] for end in found["ends"]] == [best.tokens for best in wanted]
    assert [end["score"] for end in found["ends"]] == pytest.approx([best.score for best in wanted], abs=2e-3)
    for before, step in zip(found["steps"], found["steps"][1:], strict=False):
        going_on = [candidate["score"] for candidate in before if candidate["fate"] == "goes on"]
        assert len(going_on) <= width
        assert all(candidate["score"] <= going_on[candidate["from"]] for candidate in step)
    assert sum(candidate["fate"] == "ends" for step in found["steps"] for candidate in step) >= len(found["ends"])


@pytest.mark.parametrize("causal", [True, False])
def test_softmax_of_recorded_scores_are_the_layer_s_weights(causal):
    net, source, read = translator(1, causal), torch.tensor([[3, 4, 2]]), torch.tensor([[1, 5, 6, 7]])
    scores = torch.tensor(recorded.attention_scores(net, source, read))
    layer, seen = net.decoder.layers[0].self_attn, []
    layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    net(source, read)
    allowed = torch.ones(4, 4).tril().bool() if causal else torch.ones(4, 4).bool()
    wanted = layer.weights(seen[0], causal=causal)[0]
    assert torch.allclose(scores.masked_fill(~allowed, -torch.inf).softmax(-1), wanted, atol=1e-3)


def test_recorded_sigmoids_add_up_to_the_net():
    torch.manual_seed(0)
    net = MLP(1, 1, 1, [5], "sigmoid").double()
    parts = recorded.sigmoids(net)
    for x in (-1.0, 0.3):
        heights = [c / (1 + math.exp(-w * x - b)) for w, b, c in zip(parts["w"], parts["b"], parts["c"], strict=True)]
        assert sum(heights) + parts["bias"][0] == pytest.approx(net(torch.full((1, 1, 1), x).double()).item(), abs=1e-3)


def test_recorded_filters_give_the_layer_s_outputs():
    from scripts.studies.cnn import ImageLayer, receptive_fields

    torch.manual_seed(0)
    layer = ImageLayer("convolution", 2, receptive_fields(3, 4, 3, 1, 0))
    module = torch.nn.Module()
    module.net = torch.nn.Sequential(layer)
    module.normalised = lambda x: x.float() / 255
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    found = recorded.filters(module, image)
    weight, seen = torch.tensor(found["weight"]).view(2, 3, 3, 3), torch.tensor(found["seen"])
    said = torch.nn.functional.conv2d(seen[None], weight, torch.tensor(found["bias"]))
    assert torch.allclose(said.flatten(1), layer(module.normalised(image[None])), atol=1e-2)
