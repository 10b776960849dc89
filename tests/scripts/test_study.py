"""The machine of `leeml study`: verdicts, what is kept and measured again, the command line, the page."""

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import answer, assert_fails, works
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from datamodules.errors import DataError
from datamodules.hw1_covid import CovidData
from scripts import study
from scripts.studies.lab import machine
from scripts.studies.lab import page as page_module
from scripts.studies.lab.page import page, source
from scripts.studies.lab.records import read, record, save
from scripts.studies.lab.statements import Said, Statement, interval, judge, needed, summary
from scripts.studies.lab.study import Play, Study, across, mean_and_spread

PROJECT = Path(machine.__file__).resolve().parents[3]
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


# verdicts


def stated(**options):
    kinds = {"says": Said("Up.", "上。"), "measure": lambda m: m["value"], "margin": 1.0, "unit": Said("more", "多")}
    return Statement(**{**kinds, **options})


def values(*numbers):
    return [{"value": number} for number in numbers]


spread = st.lists(numbers, min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-6)


@given(found=spread, margin=st.floats(0.1, 50))
def test_one_look_is_student_s_test(found, margin):
    above = stats.ttest_1samp(found, margin, alternative="greater").pvalue
    below = stats.ttest_1samp(found, -margin, alternative="greater").pvalue
    wanted = "holds" if above < 0.025 else "undecided" if above <= 0.975 else None
    wanted = wanted or ("too small to matter" if below < 0.025 else "does not hold")
    assert judge(stated(margin=margin), values(*found), (len(found),)).result == wanted
    wanted = "holds" if above > 0.975 else "does not hold" if above < 0.025 else "undecided"
    assert judge(stated(margin=margin, kind="at most"), values(*found), (len(found),)).result == wanted


def test_the_interval_of_two_values_in_closed_form():
    mean, low, high = interval([1.0, 3.0])
    half = math.tan(0.475 * math.pi)  # one degree of freedom is Cauchy's distribution; deviation / sqrt(2) is 1
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half))


def test_ratios_are_judged_by_their_logarithms():
    verdict = judge(stated(scale="ratio", margin=1.2), values(2.0, 4.0, 2.0, 4.0), (4,))
    assert verdict.effect == pytest.approx(math.sqrt(8))
    low, high = stats.t.interval(0.95, 3, math.log(8) / 2, stats.sem(np.log([2, 4, 2, 4])))
    assert (verdict.low, verdict.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert verdict.result == "holds"
    said = (
        f"2.83 more, 95 % sure between {math.exp(low):.3g} and {math.exp(high):.3g} (more than 1.2 was stated; 4 seeds)"
    )
    assert verdict.words.english == said


@pytest.mark.parametrize("found", [(5.0,), (1.0, math.nan), (1.0, math.inf)])
def test_one_seed_or_what_is_not_finite_is_undecided(found):
    assert judge(stated(), values(*found), (len(found),)).result == "undecided"


def test_a_ratio_that_is_not_positive_is_undecided():
    assert judge(stated(scale="ratio"), values(1.0, 0.0, -1.0), (3,)).result == "undecided"


def test_an_exact_statement_is_judged_by_its_worst_seed():
    for worst, wanted in ((1e-7, "holds"), (1e-5, "does not hold"), (math.nan, "does not hold")):
        statement = stated(margin=1e-6, kind="exact")
        assert judge(statement, values(0.0, worst), (4, 8)).result == wanted


def test_a_statement_keeps_the_verdict_of_its_first_look():
    found = values(5.0, 5.1, 4.9, 5.0, -50.0, 50.0, -30.0, 0.0)
    first = judge(stated(), found, (4, 8))
    assert (first.result, first.seeds) == ("holds", 4)
    assert judge(stated(), found, (8,)).result == "undecided"


def test_wrong_verdicts_are_rare_at_all_looks_together():
    """An effect that is just the margin: "holds" and "not" are both wrong, and each may come once in 40 times."""
    draw = np.random.default_rng(0)
    results = [
        judge(stated(), values(*draw.normal(1.0, 1.0, 16)), (4, 8, 16)).result for _ in range(2000)
    ]  # fmt: skip
    wrong = sum(result != "undecided" for result in results) / len(results)
    assert 0.02 < wrong < 0.06  # 0.05 at most, and its error over 2,000 draws; looks without a price give 0.1


def test_what_would_be_needed():
    draw = np.random.default_rng(1)
    found = draw.normal(1.5, 1.0, 4).tolist()
    more = needed(1.0, found, 0.05)
    assert more > 4
    half = stats.t.ppf(0.975, 3) * np.std(found, ddof=1) / math.sqrt(more)
    assert half <= abs(np.mean(found) - 1.0)
    assert f"about {more} seeds would decide it" in judge(stated(), values(*found), (4,)).words.english


def test_summary_and_cells():
    assert summary(["holds", "undecided", "holds", "does not hold"]) == "2 of 4 hold, 1 refuted, 1 undecided"
    assert summary(["too small to matter"]) == "0 of 1 hold, 1 too small to matter"
    assert mean_and_spread([1.0]) == "1"
    assert mean_and_spread([1.0, 3.0]) == "2 ± 1.4"
    assert across([{"a": [1, 2]}, {"a": [3, 4]}], "a").tolist() == [[1, 2], [3, 4]]


# a toy study in a project of its own


@dataclass(frozen=True)
class Settings:
    size: int = 1


class Counter:
    def __init__(self):
        self.runs, self.fails_at = [], None

    def run(self, settings, seed, root):
        if seed == self.fails_at:
            raise KeyboardInterrupt
        self.runs.append((settings.size, seed))
        return {
            "inner": {"twice": 2 * seed},
            "value": settings.size + seed,
            "root": str(root),
            "random": float(np.random.rand()),
        }


def toy_study(counter, **options):
    def figure(measurements):
        drawn = Figure(figsize=(2, 2))
        drawn.subplots().plot([m["value"] for m in measurements])
        return drawn

    kinds = {
        "number": 7, "heading": Said("A <heading>", "標題"), "lecture": Said("An <em>idea</em>.", "<em>想法</em>。"),
        "formula": "a<sub>1</sub>", "varies": Said("size", "大小"), "caption": Said("A line.", "一條線。"),
        "doubt": Said("None.", "沒有。"), "again": ("leeml study toy", Said("Again.", "再一次。")), "source": "nowhere",
        "code": ("code.py:Thing.method",), "quick": Settings(), "full": Settings(10), "run": counter.run,
        "statements": (stated(says=Said("Values & seeds grow.", "值會變大。"), margin=2.0),), "figure": figure,
        "table": lambda m: (["seed", "value"], [[i, x["value"]] for i, x in enumerate(m)]), "quick_looks": (3,),
        "full_looks": (3,),
    }  # fmt: skip
    return Study(**{**kinds, **options})


@pytest.fixture
def counter():
    return Counter()


@pytest.fixture
def toy(tmp_path, monkeypatch, counter):
    """A project with one study, toy; returns its folder."""
    project = tmp_path / "project"
    (project / "scripts" / "studies" / "lab").mkdir(parents=True)
    (project / "scripts" / "studies" / "toy.py").write_text("def run():\n    return 1\n")
    (project / "scripts" / "studies" / "other.py").write_text("")
    (project / "code.py").write_text("class Thing:\n    def method(self):\n        return '<b>'\n")
    monkeypatch.setattr("datamodules.files.places.PROJECT", project)
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "cpu_count", lambda: 1)  # other processes would know nothing of all this
    plan(monkeypatch, toy=toy_study(counter))
    return project


def plan(monkeypatch, **studies):
    """Let these be all studies there are."""
    for user in (machine, study):
        monkeypatch.setattr(user, "names", lambda: sorted(studies))
    for user in (machine, page_module, study):
        monkeypatch.setattr(user, "load", studies.__getitem__)


def run_toy(**options):
    return machine.run_studies(["toy"], **{"quick": True, "seeds": None, "root": None, "first": 0, **options})


def test_what_was_measured_is_kept(toy, counter):
    first, _ = run_toy()
    again, _ = run_toy()
    assert counter.runs == [(1, 0), (1, 1), (1, 2)]
    assert first[0].measurements == again[0].measurements
    assert first[0].seconds == again[0].seconds
    run_toy(seeds=4)
    assert counter.runs[3:] == [(1, 3)], "only the new seed"


def test_other_settings_or_code_are_measured_anew(toy, counter):
    run_toy(seeds=1)
    run_toy(seeds=1, quick=False)
    assert counter.runs == [(1, 0), (10, 0)]
    own, lab = toy / "scripts" / "studies" / "toy.py", toy / "scripts" / "studies" / "lab"
    (lab / "shared.py").write_text("from scripts.studies.lab.deep import x as y\ndef fit():\n    return y\n")
    (lab / "deep.py").write_text("x = 1\n")
    text = "from scripts.studies.lab.shared import fit\ndef run():\n    return fit()\n"

    def runs(path, new):
        """How many seeds are measured after a file has changed."""
        before = len(counter.runs)
        path.write_text(new)
        run_toy(seeds=1)
        run_toy(seeds=1)
        return len(counter.runs) - before

    assert runs(own, text) == 1
    assert runs(own, text + "COUNT = 3\ndef figure():\n    return COUNT\nSTUDY = 'another text'\n") == 0
    assert runs(own, text + "class Settings:\n    size: int = 2\n") == 0, "settings are in the key themselves"
    assert runs(own, text.replace("fit()", "fit() + 1")) == 1
    assert runs(lab / "deep.py", "x: int = 2\n") == 1
    assert runs(lab / "deep.py", "x: int = 2\nz = 3\n") == 0
    assert runs(lab / "stranger.py", "") == 0
    other = "from scripts.studies.lab import deep\ndef run():\n    return deep.z\n"
    assert runs(own, other) == 1
    assert runs(lab / "deep.py", "x: int = 2\nz = 4\n") == 1, "all of a module that is imported itself"
    assert runs(toy / "code.py", (toy / "code.py").read_text() + "# changed\n") == 1


def test_a_study_without_data_does_not_mind_where_data_lies_one_with_data_does(toy, counter, monkeypatch, tmp_path):
    for root in ("a", "b"):
        run_toy(seeds=1, quick=False, root=tmp_path / root)
    assert len(counter.runs) == 1
    plan(monkeypatch, toy=toy_study(counter, data="hw1_covid"))
    for root in ("a", "b"):
        run_toy(seeds=1, quick=False, root=tmp_path / root)
    assert len(counter.runs) == 3
    folder = tmp_path / "a" / "hw1_covid"
    folder.mkdir(parents=True)
    for text in ("1", "22"):
        (folder / "data.csv").write_text(text)
        for _ in range(2):
            run_toy(seeds=1, quick=False, root=tmp_path / "a")
    assert len(counter.runs) == 5, "once for each state of the data"


def test_a_sample_is_kept_until_the_code_that_made_it_changes(toy, counter):
    study = toy_study(counter, data="hw1_covid")
    root = machine.data_root(study, True, None)
    first = machine.state(root)
    assert CovidData.has_files(root / "hw1_covid" / "sample")
    assert machine.data_root(study, True, None) == root
    assert machine.state(root) == first
    seen = {root}
    for changed in ("datamodules/hw1_covid.py", "datamodules/text/cleaning.py"):
        (toy / changed).parent.mkdir(parents=True, exist_ok=True)
        (toy / changed).write_text("# version 2\n")
        again = machine.data_root(study, True, None)
        assert again not in seen
        assert [file[0] for file in machine.state(again)] == [file[0] for file in first]
        seen.add(again)


def test_a_sample_appears_whole_and_the_first_of_two_stays(toy, counter, monkeypatch):
    study, made = toy_study(counter, data="hw1_covid"), []

    class Sampled(CovidData):
        @staticmethod
        def sample(folder, seed=0):
            made.append(folder)
            CovidData.sample(folder, seed)
            if len(made) == 1:
                raise KeyboardInterrupt
            if len(made) == 2:  # another process, which is faster
                machine.data_root(study, True, None)

    monkeypatch.setattr(machine, "data_class", lambda name: Sampled)
    with pytest.raises(KeyboardInterrupt):
        machine.data_root(study, True, None)
    root = machine.data_root(study, True, None)
    assert len(made) == 3
    assert CovidData.has_files(root / "hw1_covid" / "sample")
    assert [path.name for path in root.iterdir()] == ["hw1_covid"], "nothing else is left"


def test_an_interrupted_study_goes_on(toy, counter):
    counter.fails_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_toy()
    counter.fails_at = None
    run_toy()
    assert counter.runs == [(1, 0), (1, 1), (1, 2)]


def test_a_seed_gives_the_same_numbers_whatever_ran_before(toy, counter, tmp_path):
    one, _ = run_toy()
    shutil.rmtree(tmp_path / "cache")
    np.random.rand(5)
    other, _ = run_toy()
    assert [m["random"] for m in one[0].measurements] == [m["random"] for m in other[0].measurements]
    assert len({m["random"] for m in one[0].measurements}) == 3


def test_seeds_side_by_side_give_what_they_give_one_by_one(monkeypatch, tmp_path):
    momentum = machine.load("momentum")
    small = replace(momentum, quick=replace(momentum.quick, landscapes=2))
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(machine, "load", lambda name: small)
        monkeypatch.setenv("LEEML_CACHE", str(tmp_path / str(cores)))
        monkeypatch.setattr(machine, "cpu_count", lambda cores=cores: cores)
        outcomes, left_out = machine.run_studies(["momentum"], True, 3, None)
        assert not left_out
        found.append(outcomes[0].measurements)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1], "in the order of seeds"


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", machine.names())
def test_seeds_share_a_gpu_one_by_one(monkeypatch, name, there):
    study = machine.load(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert not machine.takes_gpu(study.quick)
    long = study.data in ("hw3_food", "hw5_translation") or name == "attention_as_cnn"
    assert machine.takes_gpu(study.full) == (there and long)


def test_a_study_that_lacks_its_data_does_not_stop_the_others(toy, counter, monkeypatch):
    def fails(settings, seed, root):
        raise DataError("no files here")

    plan(monkeypatch, toy=toy_study(counter), other=toy_study(counter, number=1, run=fails))
    outcomes, left_out = machine.run_studies(["toy", "other"], True, None, None)
    assert [o.name for o in outcomes] == ["toy"]
    assert left_out == {"other": "no files here"}


@pytest.mark.parametrize(("margin", "runs"), [(2.0, 4), (1004.5, 8), (900.0, 4)])
def test_seeds_are_added_until_all_is_decided(toy, counter, monkeypatch, margin, runs):
    """Values are 1001, 1002, ...; 1004.5 is the mean of eight."""
    states = (stated(margin=2.0), stated(margin=margin))
    plan(monkeypatch, toy=toy_study(counter, statements=states, quick_looks=(4, 8)))
    (outcome,), _ = machine.run_studies(["toy"], True, None, None)
    assert [seed for _, seed in counter.runs] == list(range(1000, 1000 + runs))
    assert [v.result for v in outcome.verdicts] == ["holds", "undecided" if runs == 8 else "holds"]


def test_only_the_undecided_go_on(toy, counter, monkeypatch):
    plan(
        monkeypatch,
        toy=toy_study(counter, quick_looks=(2, 4)),
        other=toy_study(counter, quick_looks=(2, 4), quick=Settings(-1001), number=1),
    )
    outcomes, _ = machine.run_studies(["toy", "other"], True, None, None)
    assert [len(outcome.measurements) for outcome in outcomes] == [4, 2]


# records


def test_a_record_comes_back_as_it_was(toy, counter, monkeypatch, tmp_path):
    played = toy_study(counter, play=Play("thing", lambda m: [x["value"] for x in m]))
    plan(monkeypatch, toy=played)
    (outcome,), _ = run_toy()
    assert save(outcome, tmp_path / "results").read_bytes()[:4] == b"\x89PNG"
    kept = read(tmp_path / "results")
    assert kept == {("toy", "quick"): record(outcome)}
    assert kept["toy", "quick"].play == [1, 2, 3]
    assert kept["toy", "quick"].rows == [["0", "1"], ["1", "2"], ["2", "3"]]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"verdicts": [{}]}', '{"verdicts": [], "name": "toy"}'])
def test_what_is_no_record_is_named(tmp_path, text):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "toy.json").write_text(text)
    with pytest.raises(DataError, match=r"toy\.json: no record of a study .*; delete it and run the study again"):
        read(tmp_path)


# the command


def test_the_command_prints_saves_and_writes_the_page(toy):
    said = works("study", "toy")
    assert "7 toy: 1 of 1 hold" in said.out
    assert "Values & seeds grow.: holds" in said.out
    results = toy / "runs" / "studies"
    assert (results / "quick" / "toy.png").read_bytes()[:4] == b"\x89PNG"
    assert "Values &amp; seeds grow." in (results / "index.html").read_text(encoding="utf-8")


def test_results_are_added_to_a_page(toy, counter, monkeypatch, tmp_path):
    report = tmp_path / "report"
    plan(monkeypatch, toy=toy_study(counter), other=toy_study(counter, number=2))
    for call in (["toy"], ["other"], ["toy", "other", "--full"]):
        works("study", *call, "--report", report)
    text = (report / "index.html").read_text(encoding="utf-8")
    assert text.index('<section id="other"') < text.index('<section id="toy"'), "in the order of the notes"
    assert read(report).keys() == {(name, size) for name in ("toy", "other") for size in ("quick", "full")}


def test_seeds_for_designing_leave_no_record(toy, counter):
    said = works("study", "toy", "--design", "--seeds", "2")
    assert "7 toy: " in said.out
    assert counter.runs == [(1, 0), (1, 1)]
    assert not (toy / "runs").exists()


def test_list_names_every_study():
    said = works("study", "list").out
    for name in machine.names():
        assert re.search(rf"^ +\d+  {name} ", said, re.MULTILINE)


def test_list_shows_the_last_verdicts_the_user_s_own_first(toy, counter, monkeypatch):
    plan(monkeypatch, toy=toy_study(counter), other=toy_study(counter, number=2), third=toy_study(counter, number=3))
    works("study", "toy", "other", "--report", toy / "docs" / "studies")
    works("study", "toy")
    said = works("study", "list").out
    day = date.today().isoformat()
    assert re.search(rf"2  other .*\n +1 of 1 hold \(quick, recorded, {day}\)\n", said)
    assert re.search(rf"7  toy .*\n +1 of 1 hold \(quick, {day}\)\n", said)
    assert re.search(r"3  third .*\n +not run yet\n", said)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["momentun"], ["did you mean momentum?"]),
        (["momentum", "--seeds", "0"], ["--seeds 0"]),
        (["momentum", "--quick", "--full"], ["not allowed with"]),
        (["momentum", "--data.root", "."], ["--data.root is for --full"]),
        (["general_guide", "--full"], ["hw1_covid", "leeml data sample hw1_covid"]),
    ],
)
def test_mistakes(args, says, tmp_path):
    assert_fails(tmp_path, "study", *args, says=says)


def test_all_with_something_left_out_says_so_and_fails(toy, counter, monkeypatch, tmp_path):
    def fails(settings, seed, root):
        raise DataError("no files here")

    plan(monkeypatch, toy=toy_study(counter), other=toy_study(counter, number=1, run=fails))
    said = answer("study", "all", "--report", tmp_path / "report")
    assert said.code == 1
    assert "other: not run: no files here" in said.out
    assert read(tmp_path / "report").keys() == {("toy", "quick")}


def test_wandb_gets_a_run_a_seed_and_the_verdict(toy, monkeypatch, tmp_path):
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.summary, self.logged = options, {}, {}
            runs.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def log(self, values):
            self.logged |= values

    monkeypatch.setattr("wandb.init", lambda **options: Run(**options))
    monkeypatch.setattr("callbacks.wandb_record.has_key", lambda: False)
    works("study", "toy", "--wandb")
    assert [r.options["name"] for r in runs] == ["seed 1000", "seed 1001", "seed 1002", "verdicts"]
    assert {r.options["group"] for r in runs} == {"study-toy"}
    assert {r.options["mode"] for r in runs} == {"offline"}
    assert (runs[1].summary["value"], runs[1].summary["inner/twice"]) == (1002, 2002)
    assert runs[1].options["config"] == {"size": 1, "seed": 1001}
    assert runs[3].summary == {"Values & seeds grow.": "holds"}
    assert {"figure", "table"} == runs[3].logged.keys()


# code in the page


def test_source_finds_a_method_and_its_line(toy):
    assert source("code.py:Thing.method") == ("    def method(self):\n        return '<b>'", 2)
    with pytest.raises(LookupError, match="nothing"):
        source("code.py:Thing.nothing")


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.places, self.ids, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.places += [found[k] for k in ("src", "href") if k in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_and_needs_nothing_else(toy):
    works("study", "toy")
    text = page(toy / "runs" / "studies")
    links = Links()
    links.feed(text)
    assert links.open == []
    assert all(place.startswith(("data:image/png;base64,", "#")) for place in links.places)
    assert {place[1:] for place in links.places if place[0] == "#"} <= set(links.ids)
    assert "url(" not in text
    assert "@import" not in text
    assert 'name="viewport"' in text
    for part in ("A &lt;heading&gt;", "標題", "An <em>idea</em>.", "a<sub>1</sub>"):
        assert part in text


# every study there is


@pytest.mark.parametrize("name", machine.names())
def test_a_study_is_complete(name):
    study = machine.load(name)
    said = [s.says for s in study.statements]
    shown = [study.heading, study.lecture, study.varies, study.caption, study.doubt, study.again[1], *said]
    assert all(re.search("[\u4e00-\u9fff]", text.chinese) for text in shown)
    assert not any(re.search("[\u4e00-\u9fff]", text.english) for text in shown)
    assert all(text.english.endswith(".") for text in said)
    assert len(set(said)) == len(said) > 0
    for looks in (study.quick_looks, study.full_looks):
        assert sorted(set(looks)) == list(looks)
        assert looks[0] >= 3 or all(s.kind == "exact" for s in study.statements)
    assert study.code
    for place in study.code:
        text, line = source(place)
        assert text
        assert line > 0
    for settings in (study.quick, study.full):
        json.dumps(asdict(settings))
        assert replace(settings) == settings
    for html in (study.formula, *(part for text in shown[1:5] for part in text)):
        links = Links()
        links.feed(f"<p>{html}</p>")
        assert links.open == []


def test_no_two_studies_have_the_same_place():
    places = [machine.load(name).number for name in machine.names()]
    assert len(set(places)) == len(places)


def test_studies_are_named_as_their_files():
    assert machine.names() == sorted(p.stem for p in (PROJECT / "scripts/studies").glob("*.py") if p.stem != "__init__")
