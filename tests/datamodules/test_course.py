"""The course's baselines and files: one shape for all homeworks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.course import BASELINES, PUBLISHED, baselines_of, describe_baselines, fetch
from datamodules.errors import DataError
from scripts.cli.homeworks import homeworks


def test_baselines_get_harder():
    assert set(BASELINES) <= set(homeworks())
    for editions in BASELINES.values():
        assert len({baselines.edition for baselines in editions}) == len(editions)
        for _, _, metric, levels in editions:
            scores = list(levels.values())
            assert scores == sorted(scores, reverse=metric in ("RMSE", "MSE"))
            assert len(set(scores)) == len(scores)


def test_an_edition_is_recognised_by_its_size():
    first, second = describe_baselines(baselines_of("hw4_speaker", 56_666))  # two editions have the same data
    scores = "simple 0.60824  medium 0.70375  strong 0.7775  boss 0.865"
    assert first == f"2022, accuracy: {scores} (on the course's own hidden test set)"
    assert second.startswith("2023, accuracy: simple 0.66025")
    assert baselines_of("hw4_speaker", 56_667) == []


def test_a_score_is_placed_in_the_editions_own_metric():
    (of_2021,), (of_2022,) = (baselines_of("hw1_covid", size) for size in ((40, 3), (37, 5)))
    assert of_2021.place(0.876) == "RMSE 0.9359 passes medium, does not reach strong (0.88017)"  # 0.876 is an MSE
    assert of_2022.place(0.876) == "MSE 0.876 passes strong, does not reach boss (0.86161)"


@given(st.sampled_from([known for editions in BASELINES.values() for known in editions]), st.floats(0, 100))
def test_a_baseline_is_passed_by_what_is_at_least_as_good(known, score):
    better = (lambda a, b: a <= b) if known.metric in ("MSE", "RMSE") else (lambda a, b: a >= b)
    own = score**0.5 if known.metric == "RMSE" else score
    passed = [level for level, value in known.levels.items() if better(own, value)]
    said = known.place(score)
    assert ("passes" in said, "does not reach" in said) == (bool(passed), len(passed) < len(known.levels))
    assert not passed or f"passes {passed[-1]}" in said


def test_all_editions_are_fetched_in_one_call(monkeypatch):
    """So that one bad address does not keep the others from coming."""
    asked = []
    monkeypatch.setattr("datamodules.course.fetch_files", lambda files, to: asked.append((files, to)) or [to])
    fetch("hw1_covid", Path("d"), "2023")
    fetch("hw1_covid", Path("d"))
    names = [([file.name for file in files], to) for files, to in asked]
    assert names[0] == (["2023/covid_train.csv", "2023/covid_test.csv"], Path("d"))
    assert [name[:4] for name in names[1][0]] == ["2021", "2021", "2022", "2022", "2023", "2023"]


@pytest.mark.parametrize("homework", PUBLISHED)
def test_an_edition_that_was_not_published_is_refused(homework, tmp_path: Path):
    with pytest.raises(DataError, match=rf"no edition '2020' of {homework} can be fetched, only .*2022"):
        fetch(homework, tmp_path, "2020")
    assert not list(tmp_path.iterdir())


def test_every_published_file_has_a_checksum_and_an_address_of_its_own():
    files = [file for editions in PUBLISHED.values() for part in editions.values() for file in part]
    assert all(len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef") for file in files)
    assert len({file.sha256 for file in files}) == len(files)
    urls = [url for file in files for url in file.urls]
    assert len(set(urls)) == len(urls) >= len(files)
