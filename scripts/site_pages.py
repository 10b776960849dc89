"""Pages of the site that stand elsewhere: README and CONTRIBUTING, one page a study and one of all, one a module.

mkdocs calls the functions named on_... (mkdocs.yml, `hooks`). Nothing is written into docs/.
"""

import ast
import re
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

from scripts.studies.lab.machine import load, names
from scripts.studies.lab.notes import plain
from scripts.studies.lab.page import RESULTS, counted, page, source
from scripts.studies.lab.records import SIZES, Record, read
from scripts.studies.lab.statements import Said
from scripts.studies.lab.study import Study

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = TemporaryDirectory(prefix="leeml-site-")
COPIED = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PACKAGES = ("modules", "datamodules", "callbacks")
LANGUAGES = {
    "": {
        "ideas": "Ideas of the lectures", "lecture": "What the lecture says", "varies": "The experiment",
        "results": "Statements and verdicts", "none": "No verdict is recorded yet.", "doubt":
        "What would change your mind", "run": "Run it", "draws": "It adds its results to a page to read and to play "
        "with, `runs/studies/index.html`. `--full` takes real data and larger settings.", "next": "Try next", "code":
        "Where it is in the code", "line": "line", "source": "Source", "quick": "generated data", "full": "`--full`",
        "about": "Each idea is a small experiment with statements that can turn out false. How they are decided, and "
        "all headings of the notes: [From the notes to the code](../notes.md). "
        "[All ideas on one page, with pictures that can be played with](../studies/index.html).",
    },
    ".zh": {
        "ideas": "課堂觀念", "lecture": "課堂上怎麼說", "varies": "實驗", "results": "主張與結果", "none":
        "還沒有記錄結果。", "doubt": "什麼會讓你改變看法", "run": "自己跑一次",
        "draws": "結果會加到可以閱讀、也可以動手玩的網頁 "
        "`runs/studies/index.html`。`--full` 使用真實資料與較大的設定。", "next": "接著試試", "code": "程式碼在哪裡",
        "line": "行", "source": "出處", "quick": "產生的資料", "full": "`--full`",
        "about": "每個觀念都是一個小實驗，裡面有幾個可能不成立的主張。結論如何判定、筆記的所有標題："
        "[從筆記到程式碼](../notes.md)（英文）。[全部觀念在同一頁，圖可以動手玩](../studies/index.html)。",
    },
}  # fmt: skip
"""What the idea pages say, by the suffix of the language."""


def heading(page: str, suffix: str) -> str:
    """First heading of a page of docs/, in the language asked for where it has one."""
    paths = [ROOT / "docs" / f"{page}{kind}.md" for kind in (suffix, "")]
    text = next(path for path in paths if path.is_file()).read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ")


def copied(name: str) -> str:
    """A page of the project's root as a page of docs/: links lead to pages of the site and are named after them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    suffix = ".zh" if name.endswith(".zh.md") else ""
    text = re.sub(r"^\[[^\]]+\]\(README[.\w]*\)\n\n", "", text, flags=re.MULTILINE)  # the site has its own switch
    text = re.sub(r"\[docs/(\w+)\.md\]", lambda link: f"[{heading(link[1], suffix)}]", text)
    text = text.replace("](docs/", "](")
    for old, new in COPIED.items():
        text = text.replace(f"]({old}", f"]({new}")
    return text


@cache
def records() -> dict[tuple[str, str], Record]:
    """What docs/studies/ holds, by name and size ("quick" or "full")."""
    return read(ROOT / "docs" / "studies")


def own(said: Said, suffix: str) -> str:
    """A text in the page's language."""
    return said.chinese if suffix else said.english


def title(study: Study[Any], suffix: str) -> str:
    """Number and heading in the page's language."""
    return f"{study.number}. {own(study.heading, suffix)}"


def statements(record: Record, suffix: str) -> str:
    """Statements of a record as a list, each with its verdict, effect and interval."""
    end = "。" if suffix else "."
    return "\n".join(
        f"- **{own(RESULTS[v.result][1], suffix)}**: {plain(own(v.says, suffix))} {plain(own(v.words, suffix))}{end}"
        for v in record.verdicts
    )


def idea(name: str, study: Study[Any], suffix: str) -> str:
    """The page of a study: what the lecture says, picture and verdicts where they are recorded, command, code."""
    say = LANGUAGES[suffix]
    found = [records()[name, size] for size in SIZES if (name, size) in records()]
    lines = [f"# {title(study, suffix)}", f"*{own(study.heading, '' if suffix else '.zh')}*"]
    lines += [f"## {say['lecture']}", own(study.lecture, suffix)]
    lines.append(f'<p class="formula" markdown="0">{study.formula}</p>')
    if found:
        lines.append(f"![{title(study, suffix)}](../studies/{found[-1].size}/{name}.png)")
        lines.append(own(study.caption, suffix))
    lines += [f"## {say['varies']}", own(study.varies, suffix)]
    lines += [f"## {say['results']}", *([] if found else [say["none"]])]
    for record in found:
        counts = own(counted([verdict.result for verdict in record.verdicts]), suffix)
        lines += [f"{say[record.size]}: {counts}", statements(record, suffix)]
    lines += [f"## {say['doubt']}", own(study.doubt, suffix)]
    lines += [f"## {say['run']}", f"```bash\nleeml study {name}\n```", say["draws"]]
    command, why = study.again
    lines += [f"**{say['next']}.** {own(why, suffix)}", f"```bash\n{command}\n```"]
    lines.append(f"## {say['code']}")
    for place in study.code:
        text, line = source(place)
        path, _, member = place.partition(":")
        lines.append(
            f'??? quote "`{member}`, {say["line"]} {line}: `{path}`"\n\n' + indented(f"```python\n{text}\n```")
        )
        if path.split("/")[0] in PACKAGES:
            place = path.removesuffix(".py")
            public = member.partition("._")[0]  # the API shows no private members
            lines[-1] += f"\n\n    [{public}](../api/{place}.md#{place.replace('/', '.')}.{public})"
    return "\n\n".join([*lines, f"{say['source']}: {study.source}", ""])


def indented(text: str) -> str:
    """Four spaces before each line that is not empty."""
    return re.sub(r"^(?=.)", "    ", text, flags=re.MULTILINE)


def studies() -> list[tuple[str, Study[Any]]]:
    """All studies in the order of the notes."""
    return sorted(((name, load(name)) for name in names()), key=lambda pair: pair[1].number)


def ideas_index(suffix: str) -> str:
    """All ideas and how many of their statements hold."""
    say = LANGUAGES[suffix]
    rows = []
    for name, study in studies():
        found = [records().get((name, size)) for size in SIZES]
        counts = [own(counted([v.result for v in record.verdicts]), suffix) if record else "" for record in found]
        rows.append(f"| [{title(study, suffix)}]({name}.md) | {' | '.join(counts)} |")
    head = f"| {say['ideas']} | {say['quick']} | {say['full']} |\n|---|---|---|"
    return f"# {say['ideas']}\n\n{say['about']}\n\n" + "\n".join([head, *rows, ""])


def modules() -> dict[str, str]:
    """First line of each module's docstring, by its path without .py; packages that say nothing are left out."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if said and path.name != "__init__.py":
                found[path.relative_to(ROOT).with_suffix("").as_posix()] = said.splitlines()[0]
    return found


def api_index() -> str:
    """All modules with the first line of their docstrings."""
    rows = "\n".join(f"| [`{place}.py`]({place}.md) | {said} |" for place, said in modules().items())
    return f"# API\n\nWritten from the docstrings.\n\n| file | what it holds |\n|---|---|\n{rows}\n"


def pages() -> dict[str, str]:
    """Text of every page that does not stand in docs/, by its path there."""
    made = {new: copied(name) for name, new in COPIED.items()}
    for suffix in LANGUAGES:
        made[f"ideas/index{suffix}.md"] = ideas_index(suffix)
        made |= {f"ideas/{name}{suffix}.md": idea(name, study, suffix) for name, study in studies()}
    made["studies/index.html"] = page(ROOT / "docs" / "studies")
    made["api/index.md"] = api_index()
    for place in modules():
        made[f"api/{place}.md"] = f"# {Path(place).name}\n\n`{place}.py`\n\n::: {place.replace('/', '.')}\n"
    return made


def api_nav() -> list[Any]:
    """The API's pages by folder."""
    nav: dict[str, list[str]] = {}
    for place in modules():
        nav.setdefault(str(Path(place).parent), []).append(f"api/{place}.md")
    return ["api/index.md", *({folder: paths} for folder, paths in nav.items())]


@event_priority(100)  # before the languages are told apart
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Build from a copy of docs/ with the made pages in it; fill the navigation that follows studies and modules."""
    shutil.copytree(ROOT / "docs", SCRATCH.name, dirs_exist_ok=True)
    for path, text in pages().items():
        file = Path(SCRATCH.name) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    config.docs_dir = SCRATCH.name
    filled = {
        "Ideas": ["ideas/index.md", "notes.md", *(f"ideas/{name}.md" for name, _ in studies())],
        "API": api_nav(),
    }
    config.nav = [{key: filled.get(key, value) for key, value in part.items()} for part in config.nav or []]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A line end between two Chinese characters is no space."""
    cjk = r"[\u3000-\u9fff\uff00-\uffef]"
    return re.sub(rf"(?<={cjk})\n(?={cjk})", "", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """What a Chinese page calls its full English version is the page of that name one folder up."""
    return re.sub(r'href="[^"]*?([^"/]*)">英文完整版', r'href="../\1">英文完整版', html)
