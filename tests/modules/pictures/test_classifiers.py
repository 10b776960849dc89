"""Pictures: what is drawn is what was given, nothing warns, and names of any script can be printed."""

import io
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from modules.pictures import classifiers as pictures
from modules.pictures import style

MATRIX = torch.tensor([[6, 2, 0], [0, 0, 0], [1, 0, 3]])  # no sample of the second class
NAMES = ["bread", "egg", "soup"]


@pytest.fixture(autouse=True)
def _strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def no_chinese_font(monkeypatch):
    monkeypatch.setattr(style, "chinese_fonts", lambda: [])


@pytest.fixture
def chinese_font(tmp_path):
    """A font installed for the test: its only letter is 中."""
    pen = TTGlyphPen(None)
    for step in (pen.moveTo, pen.lineTo, pen.lineTo):
        step([(0, 0), (500, 900), (900, 0)][len(pen.points)])
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "middle"])
    font.setupCharacterMap({ord("中"): "middle"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "middle": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "middle": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "AAA One Letter", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "one.ttf")
    entries = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "one.ttf")
    style.chinese_fonts.cache_clear()
    yield "AAA One Letter"
    fontManager.ttflist[:] = entries
    style.chinese_fonts.cache_clear()


def paint(figure: Figure) -> None:
    """Draw for good: a missing glyph only warns here."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def labels(axis) -> list[str]:
    return [tick.get_text() for tick in axis.get_ticklabels()]


def images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def everything(names: list[str]) -> list[Figure]:
    """Every picture that holds text from outside."""
    count = len(names)
    matrix = torch.eye(count)
    return [
        pictures.confusion_matrix(matrix, names),
        pictures.class_accuracy(matrix, names),
        pictures.sheet(images(count), names),
        pictures.heatmaps(images(count), torch.rand(count, 2, 2), names),
        pictures.embedding({names[0]: torch.rand(count, 2)}, torch.arange(count), names),
        pictures.labelled_frames(torch.rand(count, 2), {"true": torch.arange(count)}, names),
    ]


def test_confusion_matrix_shows_shares_of_rows_and_counts():
    figure = pictures.confusion_matrix(MATRIX, NAMES)
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)  # matplotlib masks what is not a number
    np.testing.assert_allclose(shown, [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert axes.images[0].get_clim() == (0, 1)
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(numbers) == 9
    assert (numbers[1, 0], numbers[0, 1], numbers[0, 2]) == ("2", "0", "1")  # at (column, row)
    assert labels(axes.xaxis) == labels(axes.yaxis) == NAMES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "12 samples, accuracy 0.750"
    paint(figure)


@pytest.mark.parametrize(("classes", "named", "numbered"), [(15, True, True), (61, True, False), (600, False, False)])
def test_confusion_matrix_of_many_classes(classes, named, numbered):
    names = [f"c{i}" for i in range(classes)]
    figure = pictures.confusion_matrix(torch.eye(classes, dtype=torch.long), names)
    axes = figure.axes[0]
    assert bool(axes.texts) == numbered
    assert (labels(axes.xaxis) == names) == named
    assert max(figure.get_size_inches()) <= 16


@pytest.mark.parametrize("classes", [2, 11, 39, 61, 100, 600])
def test_names_neither_overlap_nor_leave_the_figure(classes):
    figure = pictures.confusion_matrix(torch.eye(classes), [f"ax-{i}" for i in range(classes)])
    paint(figure)
    inside, whole = figure.get_tightbbox(), figure.bbox_inches.padded(0.02)  # letters are rounded to whole pixels
    assert inside.x0 >= whole.x0
    assert inside.y0 >= whole.y0
    assert inside.x1 <= whole.x1
    assert inside.y1 <= whole.y1
    for axis, side in ((figure.axes[0].xaxis, "x"), (figure.axes[0].yaxis, "y")):
        boxes = [tick.get_window_extent() for tick in axis.get_ticklabels()]
        spans = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in boxes)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_it_grows_with_the_classes():
    heights = [pictures.confusion_matrix(torch.eye(n), ["a"] * n).get_figheight() for n in (3, 10, 61)]
    assert heights == sorted(set(heights))


def test_class_accuracy_is_sorted_and_leaves_empty_classes_out():
    matrix = torch.tensor([[6, 2, 0, 0], [0, 0, 0, 0], [2, 0, 2, 0], [0, 0, 0, 5]])
    figure = pictures.class_accuracy(matrix, ["bread", "egg", "soup", "rice"])
    axes = figure.axes[0]
    assert labels(axes.yaxis) == ["soup (4)", "bread (8)", "rice (5)"]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.75, 1.0]
    assert axes.yaxis_inverted()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 13 / 17)
    assert "0.765" in axes.get_xlabel()
    paint(figure)


def test_class_accuracy_of_600_classes_shows_the_worst():
    matrix = torch.diag(torch.arange(600)) + torch.eye(600).roll(1, 1)  # class i is right i times of i + 1
    axes = pictures.class_accuracy(matrix, [f"id{i}" for i in range(600)]).axes[0]
    assert labels(axes.yaxis) == [f"id{i} ({i + 1})" for i in range(100)]
    assert axes.get_title() == "the worst 100 of 600 classes"


def test_nothing_judged_yet():
    empty = pictures.confusion_matrix(torch.zeros(3, 3), NAMES)
    assert empty.axes[0].get_title().startswith("0 samples")
    bars = pictures.class_accuracy(torch.zeros(3, 3), NAMES)
    assert not bars.axes[0].patches
    sheets = [pictures.sheet(images(0), []), pictures.heatmaps(images(0), torch.zeros(0, 2, 2), [])]
    assert not any(axes.images for figure in sheets for axes in figure.axes)
    for figure in (empty, bars, *sheets):
        paint(figure)


def test_sheet_shows_the_images_under_their_titles():
    x = images(5)
    figure = pictures.sheet(x, [f"no. {i}" for i in range(5)], columns=3)
    assert len(figure.axes) == 6
    for i, axes in enumerate(figure.axes[:5]):
        np.testing.assert_array_equal(axes.images[0].get_array(), x[i].permute(1, 2, 0))
        assert axes.get_title() == f"no. {i}"
    assert not figure.axes[5].images
    assert not figure.axes[5].axison
    paint(figure)


def test_sheet_takes_grey_images():
    x = torch.rand(1, 1, 4, 8)
    (axes,) = pictures.sheet(x, ["grey"]).axes
    shown = axes.images[0].get_array()
    assert shown.shape == (4, 8, 3)
    np.testing.assert_allclose(shown[..., 2], x[0, 0], rtol=1e-6)


def test_long_titles_stay_inside_the_figure():
    figure = pictures.sheet(images(3), ["true a\npredicted b", "a", "many words " * 8])
    paint(figure)
    assert figure.axes[0].get_title() == "true a\npredicted b"
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert box.y1 <= figure.bbox.y1
        assert box.width <= figure.bbox.width / 3


@pytest.mark.parametrize("titles", [["1"], ["1", "2", "3"]])
def test_every_image_needs_a_title(titles):
    with pytest.raises(ValueError, match="zip"):
        pictures.sheet(images(2), titles)
    with pytest.raises(ValueError, match="zip"):
        pictures.heatmaps(images(2), torch.rand(2, 2, 2), titles)


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_scaled_one_by_one(channels):
    weight = torch.randn(5, channels, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 1, 10, 0, 1]
    ).view(5, 1, 1, 1)
    figure = pictures.filters(torch.nn.Parameter(weight))
    grid = figure.axes[0].images[0].get_array()
    assert grid.shape == (2 * 5, 3 * 6, 3)  # two rows of three, with a frame of one
    for i in (0, 1, 2, 4):
        row, column = divmod(i, 3)
        tile = grid[row * 5 + 1 : row * 5 + 4, column * 6 + 1 : column * 6 + 5].transpose(2, 0, 1)[:channels]
        w = weight[i].numpy()
        np.testing.assert_allclose(tile, (w - w.min()) / (w.max() - w.min()), atol=1e-6)
    assert (grid[5:, 12:] == 1).all()  # no sixth filter
    assert np.isfinite(grid).all()  # the fourth is constant
    paint(figure)


def test_heatmaps_lie_over_their_images():
    x = images(3)
    maps = torch.zeros(3, 4, 5)
    maps[0, 0, 0], maps[1, 3, 4] = 1e-6, 50.0
    figure = pictures.heatmaps(x, maps, NAMES)
    assert [axes.get_title() for axes in figure.axes] == [*NAMES, ""]  # the last is the bar of colours
    shown = [axes.images[0].get_array().astype(int) for axes in figure.axes[:-1]]
    for i, both in enumerate(shown):
        assert both.shape == (12, 20, 3)
        np.testing.assert_array_equal(both[:, :10], x[i].permute(1, 2, 0))
    change = [np.abs(both[:, 10:] - both[:, :10]).max(-1) for both in shown]
    assert not change[2].any()  # a map of zeros
    assert change[0][0, 0] > 0  # however small its maximum
    assert not change[0][6:].any()
    assert change[1][-1, -1] > 0
    assert not change[1][:6].any()
    np.testing.assert_allclose(shown[0][0, 10], 0.4 * shown[0][0, 0] + 0.6 * np.array([127.5, 0, 0]), atol=1)
    paint(figure)


def test_maps_are_smoothed_between_their_cells():
    x = torch.zeros(1, 3, 1, 8, dtype=torch.uint8)
    axes, bar = pictures.heatmaps(x, torch.tensor([[[0.0, 1.0]]]), ["x"]).axes
    assert bar.get_ylim() == (0, 1)
    brightness = axes.images[0].get_array()[0, 8:].astype(int).sum(-1)
    assert len(set(brightness.tolist())) > 3


def test_embedding_sets_separate_classes_apart():
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    far = torch.eye(3)[y].repeat(1, 20) * 10 + torch.randn(60, 60)
    figure = pictures.embedding({"input": torch.randn(60, 4), "last": far}, y, NAMES)
    assert [axes.get_title() for axes in figure.axes] == ["input", "last"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES
    points = figure.axes[1].collections[0]
    places = torch.tensor(np.asarray(points.get_offsets()), dtype=torch.float32)
    near = torch.cdist(places, places).fill_diagonal_(torch.inf).argmin(1)
    assert (y[near] == y).float().mean() > 0.95
    paint(figure)
    colours = points.get_facecolors()
    for i, mark in enumerate(legend.legend_handles):
        np.testing.assert_allclose(colours[y == i], np.broadcast_to([*mark.get_color()], (20, 4)))


def test_four_samples_keep_their_distances():
    x = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [3, 4, 0]])
    places = torch.from_numpy(pictures.flatten(x))
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(x, x).double())


def test_an_embedding_can_be_repeated_and_leaves_the_noise_alone():
    x = torch.rand(40, 60, generator=torch.Generator().manual_seed(0))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    np.testing.assert_array_equal(pictures.flatten(x), pictures.flatten(x))
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("width", [1, 2, 70])
@pytest.mark.parametrize("constant", [False, True])
def test_embeddings_of_next_to_nothing(rows, width, constant):
    x = torch.full((rows, width), 0.1) if constant else torch.randn(rows, width)
    places = pictures.flatten(x)
    assert places.shape == (rows, 2)
    assert np.isfinite(places).all()
    if constant:
        assert not places.any()
    elif rows > 1:
        assert places.any()


def test_many_classes_have_colours_without_a_legend():
    figure = pictures.embedding({"a": torch.randn(4, 2)}, torch.tensor([0, 20, 39, 60]), [f"c{i}" for i in range(61)])
    assert not figure.legends
    assert figure.axes[1].get_ylim() == (-0.5, 60.5)  # a bar of colours in its place
    paint(figure)
    assert len(np.unique(figure.axes[0].collections[0].get_facecolors(), axis=0)) == 4


def test_frames_lie_above_their_labels():
    x = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    true, said = torch.tensor([0] * 4 + [2] * 6), torch.tensor([1] * 3 + [2] * 4 + [1] * 3)
    figure = pictures.labelled_frames(x, {"true": true, "predicted": said}, NAMES, seconds=0.02)
    top, *below = figure.axes
    np.testing.assert_array_equal(top.images[0].get_array(), x.T)
    assert top.images[0].origin == "lower"
    assert top.images[0].get_extent()[:2] == [0, 0.2]
    assert [axes.get_ylabel() for axes in below] == ["true", "predicted"]
    assert below[-1].get_xlabel() == "time (s)"
    (bar,) = top.child_axes
    assert bar.get_ylim() == pytest.approx((x.min().item(), x.max().item()))
    paint(figure)
    colours = {}
    for axes, expected in zip(
        below, [[("bread", 0, 4), ("soup", 4, 10)], [("egg", 0, 3), ("soup", 3, 7), ("egg", 7, 10)]], strict=True
    ):
        assert axes.get_xlim() == top.get_xlim() == (0, 0.2)
        for (name, first, end), box, text in zip(expected, axes.patches, axes.texts, strict=True):
            assert text.get_text() == name
            assert text.get_position()[0] == pytest.approx((first + end) / 2 * 0.02)
            np.testing.assert_allclose(box.get_extents().transformed(axes.transData.inverted()).intervalx,
                                       [first * 0.02, end * 0.02])  # fmt: skip
            assert colours.setdefault(name, box.get_facecolor()) == box.get_facecolor()
    assert len(set(colours.values())) == 3


def test_names_of_short_runs_do_not_overlap():
    labels = torch.randint(0, 39, (300,), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(torch.arange(300) % 9 + 1)[:300]
    names = ["sil", "ah", "aa", *(f"x{i}" for i in range(36))]
    figure = pictures.labelled_frames(torch.rand(300, 2), {"true": labels, "predicted": labels.flip(0)}, names)
    figure.set_dpi(200)
    figure.draw_without_rendering()
    for axes in figure.axes[1:]:
        assert len(axes.texts) > 30
        spans = [text.get_window_extent() for text in axes.texts]
        assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(spans))


def test_letters_without_a_font_are_escaped(no_chinese_font):
    assert pictures.printable("bread") == "bread"
    assert pictures.printable("é ü µ\nα") == "é ü µ\nα"
    assert pictures.printable("a 中\t") == r"a \u4e2d\t"
    for figure in everything(["中 $a$ $_", "pasta", "😀"]):
        paint(figure)


def test_letters_are_kept_where_a_font_has_them(chinese_font):
    assert style.chinese_fonts() == [chinese_font]
    assert pictures.printable("中 a") == "中 a"
    for figure in everything(["中", "a 中", "pasta"]):
        paint(figure)


def test_the_font_of_last_resort_does_not_count(monkeypatch):
    monkeypatch.setattr("modules.pictures.style.findSystemFonts", lambda: [])
    monkeypatch.setattr(fontManager, "ttflist", [f for f in fontManager.ttflist if "/mpl-data/" in f.fname])
    assert style.chinese_fonts.__wrapped__() == []


def test_a_font_that_has_been_removed_does_no_harm(chinese_font, tmp_path):
    (tmp_path / "one.ttf").unlink()
    assert chinese_font not in style.chinese_fonts()


def test_dollars_are_no_formula():
    figure = pictures.sheet(images(1), ["$a_1$"])
    paint(figure)
    assert figure.axes[0].title._preprocess_math(figure.axes[0].get_title()) == ("$a_1$", False)
