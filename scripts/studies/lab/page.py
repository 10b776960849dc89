"""One page of all studies: a single HTML file with its pictures inside, to be opened without a server or network."""

import ast
import base64
import io
from html import escape
from typing import Any

from scripts.studies.lab.evidence import verdict
from scripts.studies.lab.machine import Outcome

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
.holds { background: #1a7f37; } .does-not-hold { background: #b3261e; } .not-clear { background: #7a5c00; }
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


def picture(outcome: Outcome) -> str:
    """The study's figure, inside the page."""
    stream = io.BytesIO()
    outcome.study.figure(outcome.measurements).savefig(stream, format="png", dpi=130)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(outcome.study.varies)}" src="data:image/png;base64,{data}">'


def section(outcome: Outcome) -> str:
    """All about one study."""

    study = outcome.study
    findings = "".join(
        f'<li>{badge(f.result)} {escape(f.text)} <span class="quiet">({escape(f.numbers)})</span></li>'
        for f in outcome.findings
    )
    columns, rows = study.table(outcome.measurements)
    cells = [[escape(f"{c:.4g}" if isinstance(c, float) else str(c)) for c in row] for row in rows]
    code = ""
    for place in study.code:
        text, line = source(place)
        path, _, name = place.partition(":")
        code += f"<details><summary><code>{escape(path)}</code>, line {line}: <code>{escape(name)}</code></summary>"
        code += f"<pre><code>{escape(text)}</code></pre></details>"
    settings = escape(str(study.settings(outcome.quick)))
    size = "quick, on generated data" if outcome.quick and study.data else "quick" if outcome.quick else "full"
    return f"""<section id="{outcome.name}">
<h2>{study.number}. {escape(study.heading)} <small lang="zh-Hant">{escape(study.chinese)}</small></h2>
<p><strong>Claim.</strong> {escape(study.claim)} {badge(verdict(outcome.findings))}</p>
<p>{study.idea}</p>
<p class="formula">{study.formula}</p>
<p><strong>What varies.</strong> {escape(study.varies)}</p>
{picture(outcome)}
<ul>{findings}</ul>
{grid([escape(c) for c in columns], cells)}
<p class="quiet">Source: {escape(study.source)}. Run: <code>leeml study {outcome.name}</code> ({size};
{len(outcome.measurements)} seeds, {outcome.seconds:.0f} s). Settings: <code>{settings}</code></p>
{code}</section>"""


def page(outcomes: list[Outcome], left_out: dict[str, str]) -> str:
    """The whole page, studies in the order given.

    Args:
        outcomes: What to show.
        left_out: Studies that could not be run, with the reason.
    """
    rows = [
        [str(o.study.number), f'<a href="#{o.name}">{escape(o.study.claim)}</a>', badge(verdict(o.findings))]
        for o in outcomes
    ]
    missing = "".join(f"<li><code>{escape(name)}</code>: {escape(reason)}</li>" for name, reason in left_out.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Machine learning, idea by idea</title><style>{STYLE}</style></head><body>
<h1>Machine learning, idea by idea <small lang="zh-Hant">機器學習筆記：每個想法都能跑</small></h1>
<p>The ideas of Hung-yi Lee's machine learning course, in the order of the notes, each as a claim that can fail and an
experiment that tries it. A verdict is computed: a difference holds if the 95 % interval of its mean over seeds
(Student's t, seeds paired) lies above the least difference that would matter, does not hold if it lies below, and is
not clear otherwise. A claim holds if all its parts do, and does not if one does not.</p>
{grid(["", "claim", "verdict"], rows)}
{f"<p>Not run:</p><ul>{missing}</ul>" if missing else ""}
{"".join(section(outcome) for outcome in outcomes)}
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
