"""Pictures of translations: what is drawn is what was given, bars are sacrebleu's, and no glyph is missing."""

import io
import warnings

import numpy as np
import pytest
import sacrebleu
import torch

from modules.pictures import style
from modules.pictures.translators import bleu_by_length, cross_attention_maps, position_similarity

PIECES = ["▁", "我", "▁love", "$", "</s>"]


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


@pytest.fixture(params=[True, False], ids=["with this machine's fonts", "without a Chinese font"])
def chinese(request, monkeypatch):
    """Whether there are Chinese glyphs."""
    if not request.param:
        monkeypatch.setattr(style, "chinese_fonts", lambda: [])
    return bool(style.chinese_fonts())


def paint(figure):
    """Draw for good: a missing glyph only warns here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_attention_maps_show_the_weights_of_every_layer_and_head(chinese):
    layers = {"layer 1": torch.rand(2, 4, 5).softmax(2), "layer 2": torch.rand(1, 4, 5).softmax(2)}
    figure = cross_attention_maps(layers, PIECES, PIECES[1:])
    panels = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in panels.flat] == ["layer 1, head 1", "layer 1, head 2", "layer 2", ""]
    assert not panels[1, 1].axison
    for axes, weights in zip(panels.flat, [*layers["layer 1"], *layers["layer 2"]], strict=False):
        assert np.array_equal(axes.images[0].get_array(), weights.numpy())
        assert axes.images[0].get_clim() == (0, 1)
    names = ["_", "我" if chinese else r"\u6211", "_love", r"\$", "</s>"]
    for axes in panels.flat:  # names stand at the outer ones
        place = axes.get_subplotspec()
        assert labels(axes.xaxis) == (names if place.is_last_row() else [])
        assert labels(axes.yaxis) == (names[1:] if place.is_first_col() else [])
        assert axes.get_xlabel() == ("source (tokens)" if place.is_last_row() else "")
        assert axes.get_ylabel() == ("output (tokens)" if place.is_first_col() else "")
    assert [bar.get_ylim() for axes in panels.flat for bar in axes.child_axes] == [(0, 1), (0, 1)]  # one a layer
    paint(figure)


GROUPS = {"< 5": (1, 4), "5 to 9": (5, 9), "10 to 14": (10,), "15 to 19": (), "20 to 29": (29,), "30 +": (30, 44)}


@pytest.mark.parametrize(("source", "language"), [("en", "zh"), ("zh", "en")])
def test_bars_are_the_bleu_of_sentences_of_one_length(source, language):
    words = ["word ", "3.5 "] if source == "en" else ["字", "好"]
    lengths = [length for group in GROUPS.values() for length in group]
    sources = ["".join(words[n % 2] for n in range(length)) for length in lengths]
    references = [f"句 子 很 長 啊 number {n} of all the others" for n in lengths]
    said = [text.replace("others", "other" * (n % 2)) for n, text in zip(lengths, references, strict=True)]
    figure = bleu_by_length(sources, said, references, language)
    (axes,) = figure.axes
    assert labels(axes.xaxis) == list(GROUPS)
    for bar, text, group in zip(axes.patches, axes.texts, GROUPS.values(), strict=True):
        chosen = [lengths.index(length) for length in group]
        outputs, truth = [said[i] for i in chosen], [references[i] for i in chosen]
        tokens = "zh" if language == "zh" else "13a"
        score = sacrebleu.corpus_bleu(outputs, [truth], tokenize=tokens).score if chosen else 0.0
        assert bar.get_height() == pytest.approx(score, abs=1e-3)
        assert text.get_text() == (f"{score:.1f}\n{len(chosen)} sentences" if chosen else "none")
    paint(figure)


def test_position_similarity_is_the_cosine():
    vectors = torch.tensor([[3.0, 0.0], [0.0, 0.1], [1.0, 1.0], [-2.0, 0.0]])
    figure = position_similarity(vectors)
    half = 0.5**0.5
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected, atol=1e-6)
    assert [axes.get_ylabel() for axes in figure.axes] == ["position (token)", "cosine similarity"]
    paint(figure)
