"""The site: pages made from README, studies and docstrings link to what is there and say what their sources say."""

import posixpath
import re
from pathlib import Path

import pytest

from scripts import site_pages
from scripts.site_pages import ROOT, pages, records, studies
from scripts.studies.lab.notes import plain

NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e-\d+)?")
CHINESE = sorted(ROOT.glob("docs/hw*.zh.md"))


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def numbers(text: str) -> set[str]:
    return {number.rstrip(".,") for number in NUMBER.findall(text)}


def test_every_study_has_a_page_in_both_languages(made):
    for name, study in studies():
        english, translated = made[f"ideas/{name}.md"], made[f"ideas/{name}.zh.md"]
        assert study.formula in english
        assert study.formula in translated
        assert f"leeml study {name}" in english
        assert study.heading.english in english.splitlines()[0]
        assert study.heading.chinese in translated.splitlines()[0]
        assert study.lecture.english in english
        assert study.lecture.chinese in translated
        for size in ("quick", "full"):
            if record := records().get((name, size)):
                assert english.count("- **") >= len(record.verdicts)
                assert all(plain(verdict.words.english) in english for verdict in record.verdicts)
                assert all(plain(verdict.words.chinese) in translated for verdict in record.verdicts)


def test_a_study_without_a_verdict_says_so(monkeypatch):
    monkeypatch.setattr(site_pages, "records", dict)
    name, study = studies()[0]
    page = site_pages.idea(name, study, "")
    assert "No verdict is recorded yet." in page
    assert f"leeml study {name}" in page
    assert "holds" not in page.partition("## Statements")[2].partition("##")[0]
    assert "![" not in page


def test_links_of_made_pages_lead_somewhere(made):
    for path, text in made.items():
        if not path.endswith(".md"):
            continue  # the page of the studies is HTML, and shows code
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            if "://" not in link:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link.partition("#")[0]))
                assert target in made or (ROOT / "docs" / target).is_file(), f"{path}: {link}"


def test_the_api_has_every_module(made):
    for package in site_pages.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            place = path.relative_to(ROOT).with_suffix("").as_posix()
            if path.name != "__init__.py":
                assert f"::: {place.replace('/', '.')}\n" in made[f"api/{place}.md"]


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_scores_and_commands_of_a_chinese_homework_stand_in_the_english_page(page: Path):
    text = page.read_text(encoding="utf-8")
    english = page.with_name(page.name.replace(".zh", "")).read_text(encoding="utf-8")
    scores = {number for number in numbers(text) if "." in number}
    assert scores
    assert scores <= numbers(english)
    commands = re.findall(r"^leeml .*$", text, re.MULTILINE)
    assert len(commands) > 3
    assert set(commands) <= {line.partition(" #")[0].rstrip() for line in english.splitlines()}


def test_every_homework_has_a_chinese_page():
    assert {page.name.split("_")[0] for page in CHINESE} == {f"hw{number}" for number in range(1, 6)}


def test_a_chinese_page_leads_to_the_english_one():
    html = '<p>請看<a href="hw1_covid.html">英文完整版</a>，<a href="commands.html">指令</a></p>'
    assert site_pages.on_page_content(html).count('href="../hw1_covid.html"') == 1
    assert 'href="commands.html"' in site_pages.on_page_content(html)


def test_chinese_lines_are_joined_without_a_space():
    assert site_pages.on_page_markdown("實驗。\n直接讀\n\n- 一\n- 二\nmake # 安裝\nmake") == (
        "實驗。直接讀\n\n- 一\n- 二\nmake # 安裝\nmake"
    )
