"""Pages of the site that stand elsewhere: README and CONTRIBUTING, one page a study, one page a module.

mkdocs calls the functions named on_... (mkdocs.yml, `hooks`). Nothing is written into docs/.
"""

import ast
import re
import shutil
from functools import cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

from scripts.studies.lab.evidence import Study
from scripts.studies.lab.machine import load, names
from scripts.studies.lab.page import source

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
        "ideas": "Ideas of the lectures", "claim": "Claim", "verdict": "Verdict", "quick": "generated data", "full":
        "with `--full`", "none": "No verdict is recorded.", "run": "Run it", "draws": "It prints the numbers "
        "and draws `runs/studies/quick/{name}.png`. `--full` takes real data and larger settings.",
        "code": "Where it is in the code",
        "line": "line", "source": "Source", "holds": "holds", "does not hold": "does not hold",
        "not clear": "not clear", "about": "Each idea is a claim that can fail, and an experiment that tries it. How "
        "a verdict is computed, and what decided each: [From the notes to the code](../notes.md).",
    },
    ".zh": {
        "ideas": "課堂觀念", "claim": "主張", "verdict": "結論", "quick": "產生的資料", "full":
        "`--full`", "none": "還沒有記錄結論。", "run": "自己跑一次", "draws": "會印出所有數字，並把圖存到 "
        "`runs/studies/quick/{name}.png`。`--full` 使用真實資料與較大的設定。",
        "code": "程式碼在哪裡",
        "line": "行", "source": "出處", "holds": "成立", "does not hold": "不成立",
        "not clear": "無法確定", "about": "每個觀念都是一句可能不成立的主張，加上一個驗證它的實驗。"
        "結論如何計算、由哪一部分決定：[從筆記到程式碼](../notes.md)（英文）。",
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
def verdicts() -> dict[tuple[str, str], tuple[str, str]]:
    """Recorded verdict and what decided it, by study and size ("quick" or "full"): the tables of docs/notes.md."""
    found = {}
    quick, full = (ROOT / "docs/notes.md").read_text(encoding="utf-8").split("### With `--full`")
    for size, text in (("quick", quick), ("full", full)):
        for row in re.findall(r"^\| \d+ \| (.+) \|$", text, re.MULTILINE):
            cells = row.split(" | ")
            found[cells[0], size] = (cells[-2], cells[-1])
    return found


@cache
def chinese() -> dict[str, str]:
    """Claim, idea and result of each study in Chinese: the sections of docs/ideas.zh.md, named as the studies."""
    text = (ROOT / "docs/ideas.zh.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (\w+)\n+(.*?)(?=\n## |\Z)", text, re.MULTILINE | re.DOTALL))


def title(study: Study[Any], suffix: str) -> str:
    """Number and heading in the page's language."""
    return f"{study.number}. {study.chinese if suffix else study.heading}"


def idea(name: str, study: Study[Any], suffix: str) -> str:
    """The page of a study: claim, recorded verdicts, idea, formula, picture where one is recorded, command, code."""
    say = LANGUAGES[suffix]
    found = {size: verdicts()[name, size] for size in ("quick", "full") if (name, size) in verdicts()}
    lines = [f"# {title(study, suffix)}", f"*{study.heading if suffix else study.chinese}*"]
    if suffix:
        lines.append(chinese()[name])
    else:
        lines += [f"**{say['claim']}.** {escape(study.claim, quote=False)}", study.idea]
    lines.append(f'<p class="formula" markdown="0">{study.formula}</p>')
    lines += [f"## {say['verdict']}", *([] if found else [say["none"]])]
    for size, (result, part) in found.items():
        lines.append(f"- **{say[result]}** ({say[size]})" + ("" if suffix else f": {part}"))
    if not suffix:
        lines.append(f"**What varies.** {escape(study.varies, quote=False)}")
    if (ROOT / f"docs/images/studies/{name}.png").is_file():
        lines.append(f"![{title(study, suffix)}](../images/studies/{name}.png)")
    lines += [f"## {say['run']}", f"```bash\nleeml study {name}\n```", say["draws"].format(name=name)]
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
    """All ideas with their verdicts."""
    say = LANGUAGES[suffix]
    rows = []
    for name, study in studies():
        results = [say[verdicts()[name, size][0]] if (name, size) in verdicts() else "" for size in ("quick", "full")]
        rows.append(f"| [{title(study, suffix)}]({name}.md) | {' | '.join(results)} |")
    head = f"| {say['ideas']} | {say['verdict']} ({say['quick']}) | {say['verdict']} ({say['full']}) |\n|---|---|---|"
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
