"""One page of all studies: a single HTML file with all that it needs inside, to be opened without server or network.

All texts stand in it twice, in English and in Traditional Chinese; page.css shows one of them, page.js switches. What
can be played with is in play/, a file each.
"""

import ast
import base64
import json
import tomllib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scripts.studies.lab.machine import load
from scripts.studies.lab.notes import HEADINGS
from scripts.studies.lab.records import Record, read
from scripts.studies.lab.statements import Result, Said, summary
from scripts.studies.lab.study import Study

LAB = Path(__file__).parent
EXCERPT = 32  # lines of code that are shown
RESULTS: dict[Result, tuple[str, Said]] = {
    "holds": ("✓", Said("holds", "成立")),
    "does not hold": ("✗", Said("does not hold", "不成立")),
    "too small to matter": ("≈", Said("too small to matter", "差異太小")),
    "undecided": ("?", Said("undecided", "尚未確定")),
}
DATA = {
    "quick": Said("small, on generated data (<code>--quick</code>)", "小規模，使用產生的資料（<code>--quick</code>）"),
    "full": Said("large, on real data where it needs any (<code>--full</code>)",
                 "完整規模，需要資料時使用真實資料（<code>--full</code>）"),
}  # fmt: skip
TITLE = Said("Machine learning, idea by idea", "機器學習：一個觀念，一個實驗")
INTRODUCTION = Said(
    "Each idea of the lectures is a small experiment with statements that can turn out false. Each statement has its "
    "own verdict, from seeds that had no part in making the experiment: it holds, it does not hold, its effect is too "
    "small to matter, or the seeds were too few to decide.",
    "課堂上的每個觀念都是一個小實驗，裡面有幾個可能不成立的主張。每個主張各有結論，由設計實驗時沒有用過的隨機種子判定："
    "成立、不成立、差異太小，或種子太少還無法確定。",
)


def both(said: Said, tag: str = "span") -> str:
    """A text in both languages, of which the page shows one."""
    return f'<{tag} class="en" lang="en">{said.english}</{tag}><{tag} class="zh" lang="zh-Hant">{said.chinese}</{tag}>'


def words(english: str, chinese: str, tag: str = "span") -> str:
    """Words of the page itself."""
    return both(Said(english, chinese), tag)


def escaped(said: Said) -> Said:
    """A text that is no HTML as HTML."""
    return Said(*(escape(text) for text in said))


def chip(result: Result) -> str:
    """A result as a coloured word."""
    sign, said = RESULTS[result]
    return f'<span class="chip {result.replace(" ", "-")}">{sign} {both(said)}</span>'


def counted(results: Sequence[Result]) -> Said:
    """How many statements came out how, in words."""
    others = [f"{results.count(kind)} 個{said.chinese}" for kind, (_, said) in RESULTS.items() if kind in results]
    return Said(summary(results), f"{len(results)} 個主張：{'、'.join(others)}")


def counts(record: Record) -> str:
    """A dot for each statement, and how many hold."""
    results = [verdict.result for verdict in record.verdicts]
    dots = "".join(f'<span class="{result.replace(" ", "-")}">●</span>' for result in results)
    return f'<span class="dots" aria-hidden="true">{dots}</span> {both(counted(results))}'


def grid(columns: list[str], rows: list[list[str]]) -> str:
    """An HTML table of cells that are text; it scrolls sideways where the screen is narrow."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" lang="en" tabindex="0">{table}</div>'


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


def repository() -> str | None:
    """Address of the project's repository, where pyproject.toml names one."""
    from datamodules.files.places import PROJECT

    path = PROJECT / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.is_file() else {}
    return project.get("urls", {}).get("Repository")


def code(place: str) -> str:
    """The beginning of what embodies an idea, with its place."""
    text, line = source(place)
    path, _, name = place.partition(":")
    lines = text.splitlines()
    rest = len(lines) - EXCERPT
    if rest > 5:
        text = "\n".join([*lines[:EXCERPT], f"    ...  # {rest} more lines"])
    address = repository()
    where = f'<a href="{address}/blob/main/{path}#L{line}">{path}</a>' if address else f"<code>{path}</code>"
    at = words(f"line {line}", f"第 {line} 行")
    return (
        f"<details><summary><code>{escape(name)}</code> ({where}, {at})</summary>"
        f'<pre lang="en"><code>{escape(text)}</code></pre></details>'
    )


def statements(record: Record) -> str:
    """Statements with their verdicts, effects and intervals."""
    items = "".join(
        f"<li>{chip(v.result)} {both(escaped(v.says))}"
        f'<span class="quiet">{both(Said(f"{escape(v.words.english)}.", f"{escape(v.words.chinese)}。"))}</span></li>'
        for v in record.verdicts
    )
    return f'<ul class="statements">{items}</ul>'


def play(study: Study[Any], record: Record) -> str:
    """What can be played with, if anything; page.js calls its script. A record that is older than the play has none."""
    if study.play is None or record.play is None:
        return ""
    data = json.dumps(record.play, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="play" data-script="{study.play.script}"><h3>{words("Play with it", "動手玩")}</h3>'
        f'<script type="application/json">{data}</script></div>'
    )


def flat(settings: dict[str, Any]) -> str:
    """Settings as text; those of inner tables follow their name."""
    parts = [f"{name}: ({flat(value)})" if isinstance(value, dict) else f"{name} {value}"
             for name, value in settings.items()]  # fmt: skip
    return ", ".join(parts)


def small_print(study: Study[Any], record: Record) -> str:
    """Where it comes from, and how it was run."""
    run = words(
        f"{record.seeds} seeds, {record.seconds:,.0f} seconds of one core in all, {record.day}, torch {record.torch}, "
        f"{escape(record.machine)}.",
        f"{record.seeds} 個隨機種子，單核心共 {record.seconds:,.0f} 秒，{record.day}，torch {record.torch}，"
        f"{escape(record.machine)}。",
    )
    settings = f'<span lang="en">{escape(flat(record.settings))}</span>'
    return (
        f'<p class="small">{words("Source:", "出處：")} <span lang="en">{escape(study.source)}</span>.<br>{run}<br>'
        f"{words('Settings:', '設定：')} {settings}</p>"
    )


def title(study: Study[Any]) -> str:
    """Number and heading of a study in both languages, as HTML."""
    return f"{study.number}. {both(escaped(study.heading))}"


def section(record: Record, other: Record | None, picture: Path) -> str:
    """All about one study; of a quick record beside the full one only how many statements hold."""
    study = load(record.name)
    image = picture.read_bytes()
    command, why = study.again
    size = "" if record.size == "quick" else " --full"
    also = f"<br>{words('Also', '另外')} {both(DATA[other.size])}: {counts(other)}" if other else ""
    return f"""<section id="{record.name}">
<h2>{title(study)}</h2>
<p class="sum">{counts(record)}<br><span class="quiet">{both(DATA[record.size])}{also}</span></p>
<h3>{words("What the lecture says", "課堂上怎麼說")}</h3>
{both(study.lecture, "p")}
<p class="formula" tabindex="0">{study.formula}</p>
<figure><div class="wide" tabindex="0">
<img alt="{escape(study.caption.english)}" src="data:image/png;base64,{base64.b64encode(image).decode()}"></div>
{both(study.caption, "figcaption")}</figure>
<h3>{words("The experiment", "實驗")}</h3>
{both(study.varies, "p")}
<h3>{words("Statements", "主張與結果")}</h3>
{statements(record)}
{play(study, record)}
<h3>{words("What would change your mind", "什麼會讓你改變看法")}</h3>
{both(study.doubt, "p")}
<h3>{words("Try next", "接著試試")}</h3>
{both(why, "p")}
<pre lang="en"><code>{escape(command)}</code></pre>
<h3>{words("In the code", "程式碼")}</h3>
{"".join(map(code, study.code))}
<h3>{words("In numbers", "數字")}</h3>
{grid(record.columns, record.rows)}
<p class="quiet">{words("Run it again:", "再跑一次：")} <code>leeml study {record.name}{size}</code></p>
{small_print(study, record)}
</section>"""


def index(shown: dict[str, Record]) -> str:
    """The notes' headings in their order, each with its studies, or with a command where there is no result."""
    items = ""
    for heading in HEADINGS:
        links = [f'<a href="#{name}">{title(load(name))}</a> {counts(shown[name])}' for name in heading.studies
                 if name in shown]  # fmt: skip
        missing = [f"leeml study {name}" for name in heading.studies if name not in shown]
        commands = missing or [heading.command] if not links else []
        links += [f'<code lang="en">{escape(command)}</code>' for command in commands]
        items += f"<li><strong>{escape(heading.notes)}</strong><span>{'<br>'.join(links)}</span></li>"
    return f'<ul class="index">{items}</ul>'


def scripts(shown: Iterable[Record]) -> str:
    """Those that the plays of these studies need, after page.js."""
    used = {study.play.script for study in (load(record.name) for record in shown) if study.play}
    paths = [LAB / "page.js", *(LAB / "play" / f"{name}.js" for name in sorted(used))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def page(folder: Path) -> str:
    """The whole page of a folder of results, in the order of the notes; full results where there are both."""
    records = read(folder)
    shown = {name: records.get((name, "full"), record) for (name, _), record in records.items()}
    ordered = sorted(shown.values(), key=lambda record: load(record.name).number)
    sections = "\n".join(
        section(
            record,
            records.get((record.name, "quick")) if record.size == "full" else None,
            folder / record.size / f"{record.name}.png",
        )
        for record in ordered
    )
    style = (LAB / "page.css").read_text(encoding="utf-8")
    total = [verdict.result for record in ordered for verdict in record.verdicts]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title data-en="{TITLE.english}" data-zh="{TITLE.chinese}">{TITLE.english}</title>
<style>{style}</style>
<script>
{scripts(ordered)}
</script></head><body>
<div class="bar"><button id="language" type="button">{words("繁體中文", "English")}</button>
<button id="theme" type="button">{words("dark / light", "深色／淺色")}</button>
<button id="print" type="button">{words("print", "列印")}</button></div>
<h1>{both(TITLE)}</h1>
{both(INTRODUCTION, "p")}
<p>{words("All together:", "全部合計：")} {both(counted(total))}</p>
<nav><h2>{words("By the notes", "依筆記順序")}</h2>
{index(shown)}</nav>
{sections}
</body></html>
"""
