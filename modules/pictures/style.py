"""What all pictures share: fonts that can print Chinese, and a grid of panels."""

import math
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec

from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

P = ParamSpec("P")


@cache
def chinese_fonts() -> list[str]:
    """Family of an installed font with Chinese glyphs; empty if there is none.

    Matplotlib's own list may be older than the font, so the system's folders are looked through where it has none.
    """
    known = {entry.fname: entry.name for entry in fontManager.ttflist}
    if found := _first_chinese(known):
        return found
    fresh = {}
    for file in set(findSystemFonts()) - known.keys():
        try:
            fontManager.addfont(file)
            fresh[file] = fontManager.ttflist[-1].name
        except (OSError, RuntimeError, ValueError):  # no font that matplotlib can read
            continue
    return _first_chinese(fresh)


def _first_chinese(fonts: dict[str, str]) -> list[str]:
    for file, name in sorted(fonts.items(), key=lambda font: ("Serif" in font[1], font[1])):
        if "Last Resort" in name:  # comes with matplotlib: every character there is, each drawn as a box
            continue
        try:
            if FT2Font(file).get_char_index(ord("中")):
                return [name]
        except (OSError, RuntimeError):  # matplotlib remembers fonts that have been removed since
            continue
    return []


def families() -> list[str]:
    """Fonts to look for a character in, one after the other."""
    return [*rcParams["font.family"], *chinese_fonts()]


def printable(text: str) -> str:
    r"""The text as matplotlib can print it: characters that no font has become \u escapes, no $ begins a formula."""
    fonts = [FT2Font(findfont(FontProperties(family=[family]))) for family in families()]

    def known(letter: str) -> bool:
        return letter == "\n" or any(font.get_char_index(ord(letter)) for font in fonts)

    letters = (c if known(c) else c.encode("unicode_escape").decode() for c in text)
    return "".join(letters).replace("$", r"\$")


def with_fonts(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: draw with fonts that hold every character, those of `families`."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context({"font.family": families()}):
            return draw(*args, **kwargs)

    return inner


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of empty panels without axes, width x height inches each; at least one panel."""
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def colour_bar(axes: Axes, colours: ScalarMappable, label: str = "") -> Colorbar:
    """What the colours of a panel mean, as a thin bar right of it; the panel keeps its width.

    Args:
        axes: The panel, as high as the bar will be.
        colours: What was drawn in it.
        label: Of the bar, with its unit.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    thin = 0.1 / (axes.get_position().width * figure.get_figwidth())  # 0.1 inches, in widths of the panel
    bar = figure.colorbar(colours, cax=axes.inset_axes((1 + thin, 0, thin, 1)))
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return bar
