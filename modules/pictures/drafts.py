"""Pictures of how parallel translators work."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from modules.pictures.style import printable, with_fonts

COLOURS = {"kept": "white", "same": "#d9d9d9", "new": "#a6cee3"}


@with_fonts
def drafts_grid(drafts: Sequence[Sequence[str]], asked: Sequence[Sequence[bool]], title: str) -> Figure:
    """The words of one sentence after every iteration of mask-predict, a row each.

    White words were kept, grey ones were unknown and said again, blue ones were unknown and became another word.

    Args:
        drafts: T pieces in every iteration.
        asked: Which of them were unknown before, and so are said again.
        title: The source.
    """
    rows = [[printable(piece.replace("▁", "_")) for piece in draft] for draft in drafts]
    before = [[""] * len(rows[0]), *rows[:-1]]
    widths = [0.25 + 0.09 * max(len(row[t]) for row in rows) for t in range(len(rows[0]))]
    figure = Figure(figsize=(1 + sum(widths), 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    left = 0.0
    for t, width in enumerate(widths):
        for line, (row, old, unknown) in enumerate(zip(rows, before, asked, strict=True)):
            kind = "kept" if not unknown[t] else "same" if row[t] == old[t] else "new"
            axes.barh(line, width, 0.9, left, color=COLOURS[kind], edgecolor="grey", linewidth=0.3)
            axes.text(left + width / 2, line, row[t], ha="center", va="center", fontsize=7)
        left += width
    axes.set(xlim=(0, left), xticks=[], ylim=(len(rows) - 0.5, -0.5), ylabel="iteration")
    axes.set_yticks(range(len(rows)), [str(number) for number in range(1, len(rows) + 1)])
    axes.set_title(printable(title), fontsize=8, wrap=True)
    return figure
