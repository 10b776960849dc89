"""The machine of `leeml study`: verdicts, what is kept and measured again, the command line, the page."""

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass, replace
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
from scripts.studies.lab.evidence import Finding, Study, across, effect, fact, interval, mean_and_spread, verdict
from scripts.studies.lab.page import page, source

PROJECT = Path(machine.__file__).resolve().parents[3]
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


# verdicts


@given(values=st.lists(numbers, min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-6), margin=numbers)
def test_an_effect_holds_where_student_s_test_rejects_the_opposite(values, margin):
    p = stats.ttest_1samp(values, margin, alternative="greater").pvalue
    wanted = "holds" if p < 0.025 else "does not hold" if p >= 0.975 else "not clear"
    assert effect("", values, margin).result == wanted


def test_the_interval_of_two_values_in_closed_form():
    mean, low, high = interval([1.0, 3.0])
    half = math.tan(0.475 * math.pi)  # one degree of freedom is Cauchy's distribution; deviation / sqrt(2) is 1
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half))


@pytest.mark.parametrize("values", [[5.0], [1.0, math.nan], [1.0, math.inf]])
def test_one_seed_or_what_is_not_finite_is_never_clear(values):
    assert effect("", values, 0.0).result == "not clear"


def test_values_that_all_agree_are_clear():
    assert effect("", [1.0, 1.0], 0.5).result == "holds"
    assert effect("", [0.5, 0.5], 0.5).result == "does not hold"


def test_a_fact_is_below_its_bound():
    assert fact("", 1e-7, 1e-6).result == "holds"
    assert fact("", 1e-5, 1e-6).result == "does not hold"
    assert fact("", math.nan, 1e-6).result == "does not hold"


@given(results=st.lists(st.sampled_from(["holds", "does not hold", "not clear"]), min_size=1, max_size=5))
def test_a_claim_is_as_good_as_its_weakest_part(results):
    order = ["does not hold", "not clear", "holds"]
    assert verdict([Finding("", r, "") for r in results]) == min(results, key=order.index)


def test_a_claim_without_findings_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        verdict([])


def test_cells():
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
        "number": 7, "heading": "A <heading>", "chinese": "標題", "claim": "Values & seeds grow.", "source": "nowhere",
        "idea": "An <em>idea</em>.", "formula": "a<sub>1</sub>", "varies": "size", "code": ("code.py:Thing.method",),
        "quick": Settings(), "full": Settings(10), "run": counter.run,
        "judge": lambda m: [effect("positive", [x["value"] for x in m], -1.0)], "figure": figure,
        "table": lambda m: (["seed", "value"], [[i, x["value"]] for i, x in enumerate(m)]), "seeds": 3,
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
    (project / "scripts" / "studies" / "toy.py").write_text("# version 1\n")
    (project / "scripts" / "studies" / "other.py").write_text("")
    (project / "code.py").write_text("class Thing:\n    def method(self):\n        return '<b>'\n")
    monkeypatch.setattr("datamodules.files.places.PROJECT", project)
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))
    for user in (machine, study):
        monkeypatch.setattr(user, "names", lambda: ["toy"])
    monkeypatch.setattr(machine, "cpu_count", lambda: 1)  # other processes would know nothing of all this
    found = toy_study(counter)
    monkeypatch.setattr(machine, "load", lambda name: found)
    return project


def run_toy(**options):
    return machine.run_studies(["toy"], **{"quick": True, "seeds": None, "root": None, **options})


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
    (toy / "scripts" / "studies" / "toy.py").write_text("# version 2\n")
    run_toy(seeds=1)
    (toy / "code.py").write_text((toy / "code.py").read_text() + "# changed\n")
    run_toy(seeds=1)
    assert counter.runs[2:] == [(1, 0), (1, 0)]
    run_toy(seeds=1)
    assert len(counter.runs) == 4
    lab = toy / "scripts" / "studies" / "lab"
    (lab / "shared.py").write_text("from scripts.studies.lab.deep import x\n")
    (lab / "deep.py").write_text("")
    (toy / "scripts" / "studies" / "toy.py").write_text("from scripts.studies.lab.shared import fit\n")
    run_toy(seeds=1)
    for changed in ("shared.py", "deep.py"):
        (lab / changed).write_text((lab / changed).read_text() + "# what studies share has changed\n")
        run_toy(seeds=1)
    assert len(counter.runs) == 7
    (toy / "scripts" / "studies" / "other.py").write_text("# of no concern\n")
    (lab / "stranger.py").write_text("")
    run_toy(seeds=1)
    assert len(counter.runs) == 7


def test_a_study_without_data_does_not_mind_where_data_lies_one_with_data_does(toy, counter, monkeypatch, tmp_path):
    for root in ("a", "b"):
        run_toy(seeds=1, quick=False, root=tmp_path / root)
    assert len(counter.runs) == 1
    found = toy_study(counter, data="hw1_covid")
    monkeypatch.setattr(machine, "load", lambda name: found)
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
    found = []
    for cores in (1, 2):
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
    assert machine.takes_gpu(study.full) == (there and study.data in ("hw3_food", "hw5_translation"))


def test_a_study_that_lacks_its_data_does_not_stop_the_others(toy, counter, monkeypatch):
    def fails(settings, seed, root):
        raise DataError("no files here")

    plans = {"toy": toy_study(counter), "other": toy_study(counter, number=1, run=fails)}
    monkeypatch.setattr(machine, "load", plans.__getitem__)
    outcomes, left_out = machine.run_studies(["toy", "other"], True, None, None)
    assert [o.name for o in outcomes] == ["toy"]
    assert left_out == {"other": "no files here"}


# the command


def test_the_command_prints_saves_and_writes_the_page(toy, tmp_path):
    said = works("study", "all", "--report", tmp_path / "report")
    assert "7 toy: holds" in said.out
    assert "positive: holds" in said.out
    assert (toy / "runs" / "studies" / "quick" / "toy.png").read_bytes()[:4] == b"\x89PNG"
    assert "Values &amp; seeds grow." in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_list_names_every_study():
    said = works("study", "list").out
    for name in machine.names():
        assert re.search(rf"^ +\d+  {name} ", said, re.MULTILINE)


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

    plans = {"toy": toy_study(counter), "other": toy_study(counter, number=1, run=fails)}
    monkeypatch.setattr(machine, "load", plans.__getitem__)
    for user in (machine, study):
        monkeypatch.setattr(user, "names", lambda: ["other", "toy"])
    said = answer("study", "all", "--report", tmp_path / "report")
    assert said.code == 1
    assert "other: not run: no files here" in said.out
    assert "no files here" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


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
    assert [r.options["name"] for r in runs] == ["seed 0", "seed 1", "seed 2", "verdict"]
    assert {r.options["group"] for r in runs} == {"study-toy"}
    assert {r.options["mode"] for r in runs} == {"offline"}
    assert (runs[1].summary["value"], runs[1].summary["inner/twice"]) == (2, 2)
    assert runs[1].options["config"] == {"size": 1, "seed": 1}
    assert runs[3].summary["verdict"] == "holds"
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
    outcomes, _ = run_toy()
    text = page(outcomes, {})
    links = Links()
    links.feed(text)
    assert links.open == []
    assert all(place.startswith(("data:image/png;base64,", "#")) for place in links.places)
    assert {place[1:] for place in links.places if place[0] == "#"} <= set(links.ids)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert 'name="viewport"' in text
    for part in ("A &lt;heading&gt;", "標題", "An <em>idea</em>.", "a<sub>1</sub>", "return &#x27;&lt;b&gt;&#x27;"):
        assert part in text
    assert text.count('class="verdict holds"') == 3


def test_the_page_has_the_studies_in_the_order_of_the_notes(toy, counter, monkeypatch):
    plans = {"toy": toy_study(counter), "other": toy_study(counter, number=2)}
    monkeypatch.setattr(machine, "load", plans.__getitem__)
    outcomes, _ = machine.run_studies(["toy", "other"], True, 2, None)
    text = page(outcomes, {})
    assert text.index('<section id="other"') < text.index('<section id="toy"')


# every study there is


@pytest.mark.parametrize("name", machine.names())
def test_a_study_is_complete(name):
    study = machine.load(name)
    assert study.claim.endswith(".")
    assert re.search("[\u4e00-\u9fff]", study.chinese)
    assert study.seeds >= 3
    assert study.code
    for place in study.code:
        text, line = source(place)
        assert text
        assert line > 0
    for settings in (study.quick, study.full):
        json.dumps(asdict(settings))
        assert replace(settings) == settings
    Links().feed(f"<p>{study.idea}{study.formula}</p>")


def test_no_two_studies_have_the_same_place():
    places = [machine.load(name).number for name in machine.names()]
    assert len(set(places)) == len(places)


def test_studies_are_named_as_their_files():
    assert machine.names() == sorted(p.stem for p in (PROJECT / "scripts/studies").glob("*.py") if p.stem != "__init__")
