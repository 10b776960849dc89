"""datamodules/tables/covid.py: the course's files of every edition, and what is wrong with broken ones."""

import csv
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from covid_files import STATES_2023, SURVEY_2023, World, header, write_table
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.tables.covid import CovidTable, day_keys, find_tables, read_table, window_groups

EDITIONS = {"2021": (40, 3, 18, {"train": 2700, "test": 893}), "2022": (37, 5, 16, {"train": 2159, "test": 1078})}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("edition", list(EDITIONS))
def test_real_files_equal_what_pandas_reads(edition: str, part: str, real_data: Callable[[str], Path]) -> None:
    pandas = pytest.importorskip("pandas")
    states, days, width, rows = EDITIONS[edition]
    path = real_data(f"hw1_covid/{edition}") / f"covid.{part}.csv"
    table, frame = read_table(path), pandas.read_csv(path, float_precision="round_trip")
    assert (len(table.states), table.days, len(table.survey), len(table.ids)) == (states, days, width, rows[part])
    assert table.ids == frame["id"].tolist()
    expected = frame.drop(columns="id")
    assert (table.target is None) == (part == "test")
    if table.target is not None:
        np.testing.assert_array_equal(table.target, expected.pop(f"tested_positive.{days - 1}"))
    assert table.columns == list(expected)
    np.testing.assert_array_equal(table.values, expected.to_numpy())
    assert [table.states[k] for k in table.state()] == frame[table.states].idxmax(axis=1).tolist()


def test_file_that_pandas_wrote_again_is_the_same(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    world = World()
    first = world.write(tmp_path)
    again = tmp_path / "again.csv"
    pandas.read_csv(first, float_precision="round_trip").to_csv(again, index=False)
    assert "answer0.1" in again.read_text().splitlines()[0]
    assert_same(read_table(again), read_table(first))


def test_2023_from_its_specification_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.hstack([np.eye(34)[rng.integers(34, size=50)], rng.uniform(0, 90, (50, 54))])
    train = read_table(write_table(tmp_path / "covid_train.csv", STATES_2023, SURVEY_2023, 3, values))
    test = read_table(write_table(tmp_path / "covid_test.csv", STATES_2023, SURVEY_2023, 3, values, labelled=False))
    for table in (train, test):
        assert (table.states, table.survey, table.days) == (STATES_2023, SURVEY_2023, 3)
        # "52, 70 (target 88), id at col 0"; `columns` has no id
        assert [i + 1 for i, c in enumerate(table.columns) if c.startswith("tested_positive")] == [52, 70]
        np.testing.assert_array_equal(table.values, values[:, :-1])
    assert len(train.columns) == 87
    np.testing.assert_array_equal(train.target, values[:, -1])
    assert test.target is None


def assert_same(one: CovidTable, other: CovidTable) -> None:
    assert (one.states, one.survey, one.days, one.ids) == (other.states, other.survey, other.days, other.ids)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.target, other.target)


NAMES = st.text("abcXYZ019_ .,'\"é州", min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[str], list[str], int, np.ndarray, list[int]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    cut = draw(st.integers(0, len(names) - 1))
    states, survey = names[:cut], [*names[cut:], "tested_positive"]
    days, rows = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    numbers = st.floats(-1e15, 1e15)
    answers = [draw(st.lists(numbers, min_size=days * len(survey), max_size=days * len(survey))) for _ in range(rows)]
    marks = [np.eye(cut + 1)[draw(st.integers(0, cut))][:-1] for _ in range(rows)]  # the last one marks no state
    ids = draw(st.lists(st.integers(0, 10**12), min_size=rows, max_size=rows, unique=True))
    return states, survey, days, np.hstack([np.reshape(marks, (rows, cut)), answers]), ids


@settings(max_examples=150)
@given(
    layout=layouts(), labelled=st.booleans(), suffix=st.booleans(), newline=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)  # fmt: skip
def test_every_table_in_the_layout_is_read_back(
    layout: tuple[list[str], list[str], int, np.ndarray, list[int]], labelled: bool, suffix: bool, newline: str,
    encoding: str, quoting: int, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    states, survey, days, values, ids = layout
    names = header(states, survey, days, labelled, suffix)
    assume(not suffix or len(set(names)) == len(names))  # x and x.1 as answers of one day: see below
    path = tmp_path_factory.getbasetemp() / "table.csv"
    write_table(
        path, states, survey, days, values, ids,
        labelled=labelled, suffix=suffix, newline=newline, encoding=encoding, quoting=quoting,
    )  # fmt: skip
    table = read_table(path)
    assert (table.states, table.survey, table.days, table.ids) == (states, survey, days, ids)
    np.testing.assert_array_equal(table.values, values[:, :-1])
    np.testing.assert_array_equal(table.target, values[:, -1] if labelled else None)
    assert table.columns == header(states, survey, days, False, True)[1:]
    blocks = np.split(values[:, len(states) :], days, axis=1)
    if not labelled:
        blocks[-1] = np.hstack([blocks[-1][:, :-1], np.full((len(ids), 1), np.nan)])
    for k, block in enumerate(blocks):
        np.testing.assert_array_equal(table.day(k), block)
    marked = [next((k for k in range(len(states)) if row[k] == 1), -1) for row in values]
    assert table.state().tolist() == marked


@pytest.mark.parametrize("suffix", [False, True])
def test_answers_that_look_like_a_repeated_day(suffix: bool, tmp_path: Path) -> None:
    """wave.1 is an answer of its own, told apart from the second day's wave by standing before the first target."""
    survey, values = ["wave", "wave.1", "tested_positive"], np.arange(1.0, 8).reshape(1, 7)
    values[0, 0] = 1
    path = write_table(tmp_path / "t.csv", ["AL"], survey, 2, values)
    if suffix:
        pandas = pytest.importorskip("pandas")
        pandas.read_csv(path).to_csv(path, index=False)
        assert len(set(path.read_text().splitlines()[0].split(","))) == 8
    table = read_table(path)
    assert (table.states, table.survey, table.days) == (["AL"], survey, 2)
    np.testing.assert_array_equal(table.day(1)[0], [5, 6, 7])


def test_blank_lines_and_spaces_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id, AL, a, tested_positive, a, tested_positive\n\n 7 , 1, 2.5 ,3, 4,5\n\n 8.0,0,1e1,+2,3,.5\n")
    table = read_table(path)
    assert (table.states, table.survey, table.ids) == (["AL"], ["a", "tested_positive"], [7, 8])
    np.testing.assert_array_equal(table.values, [[1, 2.5, 3, 4], [0, 10, 2, 3]])
    np.testing.assert_array_equal(table.target, [5, 0.5])


# a good file: 2 states, 3 answers a day, 3 days, 3 rows
LINES = [
    "id,AL,AK,a,b,tested_positive,a,b,tested_positive,a,b,tested_positive",
    "0,1,0,1.1,1.2,1.3,1.4,1.5,1.6,1.7,1.8,1.9",
    "1,1,0,2.1,2.2,2.3,2.4,2.5,2.6,2.7,2.8,2.9",
    "2,0,1,3.1,3.2,3.3,3.4,3.5,3.6,3.7,3.8,3.9",
]


def change(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def header_only(line: str) -> Callable[[str], str]:
    """Another header, and rows of as many columns."""
    width = line.count(",")
    return lambda _: "\n".join([line, *(",".join([str(i), *["1"] * width]) for i in range(3))]) + "\n"


BROKEN: list[tuple[str, Callable[[str], str], str]] = [
    ("empty", lambda _: "", ": the file is empty, expected a header line"),
    ("blank", lambda _: "\n\n", ": the file is empty"),
    ("header only", lambda text: LINES[0] + "\n", ": only a header line, expected one row"),
    ("no id", change("id,", "nr,"), ":1: the first column is 'nr', expected 'id'"),
    (
        "pandas index",
        lambda text: re.sub("(?m)^(?=.)", "9,", text).removeprefix("9"),
        ":1: the first column is '', expected 'id'",
    ),
    ("semicolons", lambda text: text.replace(",", ";"), ":1: the first column is 'id;AL;AK;.*commas"),
    ("web page", lambda _: "<!DOCTYPE html><html>\n", ":1: the first column is '<!DOCTYPE html"),
    ("one day", header_only("id,AL,a,b,tested_positive"), r":1: found 1 day\(s\) of survey columns"),
    ("no target at all", header_only("id,AL,a,b"), r":1: found 1 day\(s\) of survey columns"),
    ("no survey", header_only("id,AL,tested_positive,tested_positive"), ":1: a day has no column but 'tested_pos"),
    (
        "missing in day 2",
        header_only("id,AL,a,b,tested_positive,a,tested_positive,a,b,tested_positive"),
        r":1: day 2 differs from the other days: missing \['b'\], unexpected \[\]",
    ),
    (
        "first one missing in day 2",
        header_only("id,AL,a,b,tested_positive,b,tested_positive,a,b,tested_positive"),
        r":1: day 2 differs from the other days: missing \['a'\], unexpected \[\]",
    ),
    (
        "missing in day 1",
        header_only("id,AL,a,tested_positive,a,b,tested_positive,a,b,tested_positive"),
        r":1: day 1 differs from the other days: missing \['b'\], unexpected \['AL'\]",
    ),
    (
        "extra in day 3",
        header_only("id,AL,a,b,tested_positive,a,b,tested_positive,a,x,b,tested_positive"),
        r":1: day 3 differs from the other days: missing \[\], unexpected \['x'\]",
    ),
    (
        "order",
        header_only("id,AL,a,b,tested_positive,b,a,tested_positive,a,b,tested_positive"),
        r":1: day 2 differs from the other days: order \['b', 'a', 'tested_positive'\]",
    ),
    ("extra at the end", header_only(LINES[0] + ",a,z"), r":1: day 4 differs.*missing \['b'\], unexpected \['z'\]"),
    ("state twice", change("AL,AK", "AL,AL"), ":1: column 'AL' stands twice before the second day"),
    (
        "extra in day 1",
        change("a,b,tested_positive,a", "x,a,b,tested_positive,a"),
        ":2: 12 columns, expected 13 as in the header",
    ),
    ("too few cells", change("3.8,", ""), ":4: 11 columns, expected 12 as in the header"),
    ("too many cells", change("2.9", "2.9,0"), ":3: 13 columns, expected 12 as in the header"),
    ("text", change("2.5", "two"), r":3: column 8 \(b\) is 'two', expected a finite number"),
    ("text in a quoted cell", change("2.5", '"two, or more"'), r":3: column 8 \(b\) is 'two, or more'"),
    ("comma decimals", change("3.9", '"3,9"'), r":4: column 12 \(tested_positive\) is '3,9'"),
    ("nothing", change("3.3", ""), r":4: column 6 \(tested_positive\) is '', expected a finite number"),
    ("NaN", change("1.1", "NaN"), r":2: column 4 \(a\) is 'NaN', expected a finite number"),
    ("inf", change("1.9", "-inf"), r":2: column 12 \(tested_positive\) is '-inf', expected a finite number"),
    ("too large", change("1.9", "1e999"), r":2: column 12 \(tested_positive\) is '1e999', expected a finite number"),
    ("NUL", change("1.4", "1\0"), ", line 2: a byte is 0"),
    ("the first of two", lambda t: t.replace("3.1", "x").replace("2.9", "nan"), r":3: column 12 \(tested_positive\)"),
    ("id is a text", change("\n2,", "\nB2,"), r":4: column 1 \(id\) is 'B2', expected a whole number"),
    ("id is broken", change("\n2,", "\n2.5,"), r":4: column 1 \(id\) is '2.5', expected a whole number"),
    ("id is missing", change("\n2,", "\n,"), r":4: column 1 \(id\) is '', expected a whole number"),
    ("id twice", change("\n2,", "\n0,"), ":4: id 0 stands already in line 2"),
    ("id twice, written otherwise", change("\n2,", "\n0.0,"), ":4: id 0 stands already in line 2"),
    ("half a state", change("2,0,1,", "2,0,0.5,"), r":4: column 3 \(AK\) is '0.5', expected 0 or 1, the mark of a"),
    ("two states", change("2,0,1,", "2,1,1,"), r":4: column 3 \(AK\) is '1', expected 0, as the row is marked.*AL"),
    ("open quote", change("2.5", '"2.5'), ":4: not a line of a CSV file"),
    ("two quotes", change("2.5", '"2"5'), ":3: not a line of a CSV file"),
]


@pytest.mark.parametrize(("change", "expected"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_wrong_is_named_with_file_line_and_column(
    change: Callable[[str], str], expected: str, tmp_path: Path
) -> None:
    good = "\n".join(LINES) + "\n"
    path = tmp_path / "covid.train.csv"
    path.write_text(good)
    read_table(path)
    path.write_text(change(good))
    with pytest.raises(DataError, match="^" + re.escape(str(path)) + expected) as caught:
        read_table(path)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_survey_column_of_the_first_day_only_is_not_taken_for_a_state(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,AL,x,a,tested_positive,a,tested_positive\n0,1,37.5,1,2,3,4\n")
    with pytest.raises(DataError, match=r":2: column 3 \(x\) is '37.5', expected 0 or 1"):
        read_table(path)


@pytest.mark.parametrize(
    ("data", "line"), [("id,é\n".encode("latin-1"), 1), (b"id,AL\n1,\xff\n", 2), (b"PK\x03\x80", 1)]
)
def test_not_a_text_file(data: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"t\.csv, line {line}: byte .* is no UTF-8; save"):
        read_table(path)


def test_file_cut_short_anywhere_in_its_last_line_does_not_pass_unseen(tmp_path: Path) -> None:
    """A cut inside the last number looks like a number: nothing can be sure then, so the missing line end is told."""
    text, path = "\n".join(LINES) + "\n", tmp_path / "t.csv"
    start = text.index(LINES[-1])
    for size in range(start + 1, len(text)):
        path.write_text(text[:size])
        if size > text.rindex(",") + 1:
            with pytest.warns(UserWarning, match=r"t\.csv:4: the last line has no end"):
                assert len(read_table(path).ids) == 3
        else:
            with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match=r"t\.csv:4: "):
                read_table(path)
    path.write_text(text)
    with warnings.catch_warnings(action="error"):
        read_table(path)


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(st.integers(0, 1), *[st.integers(0, 4)] * 3), min_size=1, max_size=9))
def test_window_groups_are_the_connected_components(rows: list[tuple[int, ...]]) -> None:
    """Against the closure of the relation "same state and a day in common" by powers of its matrix."""
    values = np.array([[*np.eye(2)[state], *np.repeat(days, 2)] for state, *days in rows], dtype=float)
    n = len(rows)
    table = CovidTable(
        Path("t.csv"), ["AL", "AK"], ["a", "tested_positive"], 3, list(range(n)), values[:, :-1], values[:, -1]
    )
    linked = np.array([[r[0] == q[0] and bool(set(r[1:]) & set(q[1:])) for q in rows] for r in rows])
    closure = np.linalg.matrix_power(linked.astype(float), n) > 0
    groups = window_groups(table)
    np.testing.assert_array_equal(groups[:, None] == groups, closure)
    keys = day_keys(table)
    assert len(keys) == 3 * n
    assert len({key for key, _ in keys}) == len({(r[0], day) for r in rows for day in r[1:]})


def test_utf16_and_commas_at_the_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(LINES) + "\n")
    plain = read_table(path)
    path.write_text("\n".join(f"{line},," for line in LINES) + "\n", encoding="utf-16")
    with pytest.warns(UserWarning, match=r"t\.csv:1: 4 lines end in commas that no column follows; they are left out"):
        found = read_table(path)
    assert found.columns == plain.columns
    np.testing.assert_array_equal(found.values, plain.values)
    path.write_text("\n".join([LINES[0], LINES[1] + ",", LINES[2] + ",7", *LINES[3:]]) + "\n")
    with pytest.warns(UserWarning, match=r":2: 1 lines end in"), pytest.raises(DataError, match=r":3: 13 columns, exp"):
        read_table(path)
    path.write_bytes("\n".join(LINES).encode("utf-16-le"))
    with pytest.raises(DataError, match=r"t\.csv, line 1: a byte is 0 \(UTF-16 without a mark at its start\); save"):
        read_table(path)


def test_files_are_found_by_their_headers(tmp_path: Path) -> None:
    labelled, unlabelled = "\n".join(LINES) + "\n", "\n".join(line.rsplit(",", 1)[0] for line in LINES) + "\n"

    def found(**files: str) -> list[list[str]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name.replace('__', '.')}.csv").write_text(text)
        return [[path.name for path in part] for part in find_tables(folder)]

    assert found(covid__train_new=labelled, covid__test_un=unlabelled, submission="id,tested_positive\n0,1\n") == [
        ["covid.train_new.csv"], ["covid.test_un.csv"], ["submission.csv"]
    ]  # fmt: skip
    assert found(a=unlabelled, b=labelled) == [["b.csv"], ["a.csv"], []]
    assert found(my_test=labelled, b=labelled) == [["b.csv"], ["my_test.csv"], []]
    assert found(a=labelled, b=labelled, c=unlabelled) == [["a.csv", "b.csv"], ["c.csv"], []]
    assert found(a=labelled, covid_train=labelled) == [["covid_train.csv"], [], ["a.csv"]]
    assert find_tables(tmp_path / "none") == ([], [], [])
