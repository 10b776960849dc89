"""Docs hold: both READMEs say the same, and paths, links, classes and versions named anywhere are there."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("modules", "datamodules", "callbacks", "scripts", "configs", "tests", "docs", "examples", ".github", ".ci")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and commands of each code block, without comments."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, re.sub(r"\s+#.*$", "", code, flags=re.MULTILINE)) for language, code in found]


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def braces(path: str) -> list[str]:
    """a/{b,c}.py as a/b.py and a/c.py."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def paths(page: Path) -> list[str]:
    """Paths of the project between backticks; hwN_name and <level> stand for many."""
    quoted = re.findall(r"`([\w./{},*<>-]+)`", text_of(page))
    named = [path for quote in quoted for path in braces(quote) if path.split("/")[0] in FOLDERS and "/" in path]
    return [path for path in named if "hwN" not in path and "<" not in path]


def test_the_readmes_are_in_step():
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    assert blocks(english) == blocks(chinese)
    shapes = []
    for page in (english, chinese):
        shape = [re.match(r"#+|\||!|-", line) for line in text_of(page).splitlines()]
        shapes.append([kind.group() for kind in shape if kind])
    assert shapes[0] == shapes[1], "headings, rows of tables, pictures and lists"
    assert sorted(set(links(english)) - {"README.zh.md"}) == sorted(set(links(chinese)) - {"README.md"})
    commands = [re.findall(r"`(leeml [^`]+)`", text_of(page)) for page in (english, chinese)]
    assert commands[0] == commands[1]


@pytest.mark.parametrize("name", ["commands", "gpu", "plan", "trust"])
def test_a_translated_page_has_the_headings_and_commands_of_the_english_one(name):
    english, chinese = (ROOT / "docs" / f"{name}{suffix}.md" for suffix in ("", ".zh"))
    assert blocks(english) == blocks(chinese)
    levels = [re.findall(r"^#+", text_of(page), re.MULTILINE) for page in (english, chinese)]
    assert levels[0] == levels[1]


def test_the_readme_is_short():
    for name in ("README.md", "README.zh.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 120, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_of_a_page_are_there(page):
    gone = [path for path in paths(page) if not any(ROOT.glob(path.rstrip("/")))]
    assert not gone
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_classes_named_behind_a_file_stand_in_it(page):
    """As in `modules/nets/transformer.py` (`Encoder`)."""
    for path, name in re.findall(r"`(\w[\w/]+\.py)` \(`(\w+)`\)", text_of(page)):
        assert re.search(rf"^\s*(class|def) {name}\b", (ROOT / path).read_text(), re.MULTILINE), f"{name} in {path}"


def test_a_path_that_is_gone_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`modules/{base,gone}.py`, `scripts/`, `leeml fit`, `configs/hwN_name/boss.yaml`, `a/b`\n")
    assert paths(page) == ["modules/base.py", "modules/gone.py", "scripts/"]


def test_the_named_example_of_an_idea_has_it():
    """First table of docs/where.md: the class or setting stands in the config named beside it."""
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `(configs/[^`]+)` \|$", text_of(ROOT / "docs/where.md"), re.MULTILINE)
    assert len(rows) > 5
    for said, config in rows:
        names = [name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", said)]
        assert any(re.search(rf"\b{name}\b", (ROOT / config).read_text()) for name in names), f"{said}: {config}"


# versions


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.]+", line) for line in lines), "names and versions only"
    return dict(line.split("==") for line in lines)


def test_constraints_fit_what_the_project_asks_for():
    tested = constraints()
    for line in project()["dependencies"] + project()["optional-dependencies"]["dev"]:
        wanted = Requirement(line)
        version = tested[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version, prereleases=True), f"{line}: tested with {version}"


def test_hosted_ci_takes_the_oldest_versions_allowed():
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    jobs = yaml.safe_load(workflow)["jobs"]["test"]
    oldest = next(row for row in jobs["strategy"]["matrix"]["include"] if row["versions"] == "oldest")
    assert project()["requires-python"] == f">={oldest['python']}"
    for line in project()["dependencies"]:
        if line.startswith(("torch>=", "torchvision>=")):
            name, bound = line.split(">=")
            assert f"{name}=={bound}.0" in workflow, f"{name} {bound} is not tested"


def test_forms_and_hooks_are_yaml():
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
