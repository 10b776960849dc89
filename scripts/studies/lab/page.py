"""One page of all studies: a single HTML file with its pictures inside, to be opened without a server or network."""

import ast
import base64
from html import escape
from pathlib import Path
from typing import Any

from scripts.studies.lab.machine import load
from scripts.studies.lab.records import Record, read

STYLE = """
:root { --line: #d8d8d8; --quiet: #5f6368; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: #1f2328; background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans TC", "PingFang TC", "Microsoft JhengHei",
  sans-serif; }
h1, h2 { line-height: 1.25; } h2 { margin: 0 0 .5rem; }
h1 small, h2 small { display: block; font-weight: normal; color: var(--quiet); }
section { border-top: 1px solid var(--line); padding: 1.5rem 0; }
img { display: block; width: 100%; height: auto; margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; } th, td { text-align: left; vertical-align: top;
  padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
.verdict { display: inline-block; padding: 0 .6rem; border-radius: 1rem; color: #fff; white-space: nowrap; }
.holds { background: #1a7f37; } .does-not-hold { background: #b3261e; } .undecided { background: #7a5c00; }
.too-small-to-matter { background: #57606a; }
.formula { padding: .5rem .8rem; background: #f5f5f5; overflow-x: auto; }
.quiet { color: var(--quiet); font-size: .9rem; } li { margin: .35rem 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .8rem; background: #f5f5f5; font-size: .8rem; line-height: 1.4; }
summary { cursor: pointer; overflow-wrap: anywhere; }
"""


def badge(result: str) -> str:
    """A result as a coloured word."""
    return f'<span class="verdict {result.replace(" ", "-")}">{result}</span>'


def grid(columns: list[str], rows: list[list[str]]) -> str:
    """An HTML table of cells that are HTML already; it scrolls sideways where the screen is narrow."""
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(record: Record, picture: Path) -> str:
    """All about one study."""
    study = load(record.name)
    statements = "".join(
        f'<li>{badge(v.result)} {escape(v.says.english)} <span class="quiet">({escape(v.words.english)})</span></li>'
        for v in record.verdicts
    )
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"""<section id="{record.name}">
<h2>{study.number}. {escape(study.heading.english)} <small lang="zh-Hant">{escape(study.heading.chinese)}</small></h2>
<p>{study.lecture.english}</p>
<p class="formula">{study.formula}</p>
<img alt="{escape(study.caption.english)}" src="data:image/png;base64,{data}">
<ul>{statements}</ul>
{grid([escape(c) for c in record.columns], [[escape(cell) for cell in row] for row in record.rows])}
</section>"""


def page(folder: Path) -> str:
    """The whole page of a folder of results, in the order of the notes; full results where there are both."""
    records = read(folder)
    shown = {name: records.get((name, "full"), record) for (name, _), record in records.items()}
    ordered = sorted(shown.values(), key=lambda record: load(record.name).number)
    sections = "".join(section(record, folder / record.size / f"{record.name}.png") for record in ordered)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Machine learning, idea by idea</title><style>{STYLE}</style></head><body>
<h1>Machine learning, idea by idea <small lang="zh-Hant">機器學習筆記：每個想法都能跑</small></h1>
{sections}
</body></html>
"""


def source(place: str) -> tuple[str, int]:
    """Text and first line of "path:name" in the project; the name of a method is Class.method.

    Raises:
        LookupError: nothing of this name is defined there.
    """
    from datamodules.files.places import PROJECT

    path, _, name = place.partition(":")
    text = (PROJECT / path).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        found = [n for n in node.body if getattr(n, "name", None) == part]
        if not found:
            raise LookupError(f"{place}: no {part!r} there")
        node = found[0]
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]), node.lineno
