"""datamodules/hw1_covid.py and what it has from base.py: folds, facts for the module, loaders, and where files lie."""

import hashlib
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from covid_files import STATES_2023, SURVEY_2023, World, write_table
from jsonargparse import ArgumentParser
from sklearn.feature_selection import f_regression, mutual_info_regression

from datamodules.base import Fold, HomeworkData
from datamodules.course import PUBLISHED
from datamodules.errors import DataError
from datamodules.files.places import PROJECT, default_root
from datamodules.generated import write_covid
from datamodules.hw1_covid import CovidData
from datamodules.tables.features import feature_matrix
from modules.hw1_covid import CovidNet

WORLD = World()
SPLITS = ["random", "interleaved", "state", "time", "grouped"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WORLD's training file and an unlabelled test file of the same layout."""
    folder = tmp_path_factory.mktemp("world")
    WORLD.write(folder)
    World(windows=4, seed=5).write(folder, "test", labelled=False)
    return folder


def data(folder: Path, stage: str = "fit", **options: Any) -> CovidData:
    made = CovidData(dir=str(folder), **options)
    made.setup(stage)
    return made


def facts(folder: Path, **options: Any) -> dict[str, Any]:
    found = data(folder, **options).facts
    assert found is not None
    return found


def assert_partition(folds: list[Fold], rows: int) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate([f.val for f in folds])), np.arange(rows))
    for fold in folds:
        assert len(fold.train) > 0
        assert len(np.unique(fold.train)) == len(fold.train)
        assert not set(fold.train) & set(fold.val)


# splits


@pytest.mark.parametrize("folds", [2, 5])
@pytest.mark.parametrize("split", SPLITS)
def test_folds_are_a_partition(split: str, folds: int, folder: Path) -> None:
    found = data(folder, split=split, folds=folds).split()
    rows = len(WORLD.values)
    assert len(found) == folds
    assert_partition(found, rows)
    for fold in found:
        if split == "time":  # the rest, minus rows that share a day with the held-out ones
            held = set().union(*(WORLD.window(r) for r in fold.val))
            expected = [r for r in range(rows) if not WORLD.window(r) & held]
        else:
            expected = sorted(set(range(rows)) - set(fold.val))
        assert fold.train.tolist() == expected


@pytest.mark.parametrize("split", SPLITS)
def test_split_depends_on_the_seed_and_on_nothing_else(split: str, folder: Path) -> None:
    one, same = (data(folder, split=split, seed=4, members=m).split() for m in (1, 3))
    np.random.seed(7)
    torch.manual_seed(7)
    other = data(folder, split=split, seed=5).split()
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.val, b.val)
        np.testing.assert_array_equal(a.train, b.train)
    drawn = split in ("random", "state", "grouped")
    assert any(a.val.tolist() != b.val.tolist() for a, b in zip(one, other, strict=True)) == drawn


def test_random_folds_are_of_equal_size(folder: Path) -> None:
    sizes = [len(f.val) for f in data(folder, folds=7).split()]
    assert max(sizes) - min(sizes) <= 1


def test_interleaved_is_the_split_of_the_course_sample(folder: Path) -> None:
    fold = data(folder, split="interleaved", folds=10).split()[0]
    assert fold.val.tolist() == [i for i in range(len(WORLD.values)) if i % 10 == 0]


def test_state_is_on_one_side(folder: Path) -> None:
    for fold in data(folder, split="state", folds=3).split():
        assert not set(WORLD.state[fold.train]) & set(WORLD.state[fold.val])


@pytest.mark.parametrize("split", ["grouped", "time", "state"])
def test_day_is_on_one_side(split: str, folder: Path) -> None:
    for fold in data(folder, split=split).split():
        train, val = (set().union(*(WORLD.window(r) for r in rows)) for rows in fold)
        assert not train & val


def test_random_split_does_leak(folder: Path) -> None:
    """What the docs say about the course's own split: nearly every held-out row shares days with training rows."""
    fold = data(folder).split()[0]
    train = set().union(*(WORLD.window(r) for r in fold.train))
    assert np.mean([bool(WORLD.window(r) & train) for r in fold.val]) > 0.9


def test_grouped_keeps_more_than_whole_states_apart(folder: Path) -> None:
    """Where windows are missing a state falls into several groups, and they may lie on both sides."""
    fold = data(folder, split="grouped").split()[0]
    assert set(WORLD.state[fold.train]) & set(WORLD.state[fold.val])


def test_time_folds_are_stretches_from_the_last_to_the_first(folder: Path) -> None:
    folds = data(folder, split="time", folds=4).split()
    for state in range(WORLD.states):
        stretches = [WORLD.start[f.val[WORLD.state[f.val] == state]] for f in folds]
        for later, earlier in pairwise(stretches):
            assert later.min() > earlier.max()
        sizes = [len(s) for s in stretches]
        assert max(sizes) - min(sizes) <= 1


def test_time_goes_by_id_not_by_line(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(WORLD.values))
    write_table(
        tmp_path / "covid.train.csv", WORLD.names, WORLD.survey, WORLD.days, WORLD.values[order], ids=order.tolist()
    )
    val = order[data(tmp_path, split="time").split()[0].val]
    for state in range(WORLD.states):
        rows = np.flatnonzero(WORLD.state == state)
        held = np.sort(val[WORLD.state[val] == state])
        np.testing.assert_array_equal(held, rows[-len(held) :])


@pytest.mark.parametrize("edition", ["2021", "2022"])
def test_folds_of_the_real_files(edition: str, real_data: Callable[[str], Path]) -> None:
    """Days told apart by their text in the file, states by their mark."""
    real = real_data(f"hw1_covid/{edition}")
    found = data(real)
    assert found.train is not None
    states, width = len(found.train.states), len(found.train.survey)
    lines = [line.split(",")[1:] for line in (real / "covid.train.csv").read_text().splitlines()[1:]]
    state = [cells[:states].index("1") for cells in lines]
    days = [
        {(s, *cells[start : start + width]) for start in range(states, len(cells), width)}
        for s, cells in zip(state, lines, strict=True)
    ]
    for split in SPLITS:
        found.split_by = split
        folds = found.split()
        assert_partition(folds, len(lines))
        for fold in folds:
            train, val = (set().union(*(days[r] for r in rows)) for rows in fold)
            shared = len(train & val)
            assert shared == 0 if split in ("state", "time", "grouped") else shared > 500
            if split == "state":
                assert not {state[r] for r in fold.train} & {state[r] for r in fold.val}


@pytest.mark.parametrize(
    ("split", "states", "windows", "folds", "expected"),
    [
        ("random", 1, 4, 5, "4 rows cannot be cut into data.folds = 5 parts by random"),
        ("interleaved", 1, 4, 5, "4 rows cannot be cut into data.folds = 5 parts by interleaved"),
        ("time", 1, 4, 5, "4 rows cannot be cut into data.folds = 5 parts by time"),
        ("time", 2, 3, 5, "no val rows in fold 0: 6 rows of 2 states are too few for data.folds = 5 by time"),
        ("time", 1, 2, 2, "no train rows in fold 0: 2 rows of 1 states are too few for data.folds = 2 by time"),
        ("state", 6, 9, 7, "6 groups of rows cannot be cut into data.folds = 7 parts by state"),
        ("grouped", 2, 9, 3, "2 groups of rows cannot be cut into data.folds = 3 parts by grouped"),
    ],
)
def test_too_few_rows_or_groups(
    split: str, states: int, windows: int, folds: int, expected: str, tmp_path: Path
) -> None:
    path = World(states=states, windows=windows, missing=0).write(tmp_path)
    with pytest.raises(DataError, match="^" + re.escape(f"{path}: {expected}")):
        data(tmp_path, split=split, folds=folds)


# facts


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("features", ["raw", "differences"])
@pytest.mark.parametrize("target", ["level", "change"])
def test_statistics_are_those_of_the_training_rows_of_the_fold(
    split: str, features: str, target: str, folder: Path
) -> None:
    options = {"split": split, "features": features, "target": target, "seed": 2}
    for number in range(5):
        made = data(folder, **options, fold=number)
        assert made.facts is not None
        train = made.split()[number].train
        if features == "raw":
            x = WORLD.values[train, :-1]
        else:
            marks, block = WORLD.states, WORLD.columns
            days = [WORLD.values[train, marks + k * block : marks + (k + 1) * block] for k in range(3)]
            x = np.hstack([
                WORLD.values[train, :marks], days[2][:, :-1], days[1][:, -1:],
                (days[2] - days[1])[:, :-1], days[1] - days[0],
            ])  # fmt: skip
        y = WORLD.target[train] - (WORLD.yesterday[train] if target == "change" else 0)
        mean, scale = x.mean(0), x.std(0)
        mean[: WORLD.states], scale[: WORLD.states] = 0, 1
        scale[: WORLD.states][~x[:, : WORLD.states].any(0)] = np.inf
        np.testing.assert_allclose(made.facts["mean"][0], mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(made.facts["scale"][0], scale, rtol=1e-6)
        np.testing.assert_allclose(made.facts["target_mean"], [y.mean()], rtol=1e-6)
        np.testing.assert_allclose(made.facts["target_scale"], [y.std()], rtol=1e-6)
        assert made.facts["fold"].tolist() == [number]


@pytest.mark.parametrize("select", ["all", "f_test", "mutual_info"])
def test_held_out_and_test_rows_have_no_say(select: str, folder: Path, tmp_path: Path) -> None:
    options = {"select": select, "k": 6, "feature_share": 0.5, "members": 2, "target": "change"}
    made = data(folder, **options)
    values = WORLD.values.copy()
    val = made.split()[0].val
    values[val, WORLD.states :] = np.random.default_rng(1).normal(1e3, 1e3, (len(val), WORLD.days * WORLD.columns))
    write_table(tmp_path / "covid.train.csv", WORLD.names, WORLD.survey, WORLD.days, values)
    World(seed=9).write(tmp_path, "test")
    other = data(tmp_path, "test", **options)
    assert made.facts is not None
    assert other.facts is not None
    assert_same_facts(made.facts, other.facts, but=("edition",))


def assert_same_facts(one: dict[str, Any], other: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    assert one.keys() == other.keys()
    for key in one.keys() - set(but):
        if isinstance(one[key], torch.Tensor) or key == "train_rows":  # a list of tensors
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
        else:
            assert one[key] == other[key]


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize(
    ("select", "split"), [*((s, k) for s in ("all", "targets", "f_test") for k in SPLITS), ("mutual_info", "state")]
)
def test_all_folds_at_once_have_the_facts_of_each(select: str, split: str, share: float, folder: Path) -> None:
    """Also by state, where the marks of the held-out states never vary and their number differs from fold to fold."""
    options = {"split": split, "select": select, "k": 16, "folds": 4, "members": 2, "feature_share": share}
    together = facts(folder, fold=None, **options)
    assert together["fold"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    if share == 1:
        for number in range(4):
            alone = facts(folder, fold=number, **options)
            here = slice(2 * number, 2 * number + 2)
            for key in ("used", "mean", "scale", "is_state", "fold", "target_mean", "target_scale"):
                torch.testing.assert_close(together[key][here], alone[key], rtol=0, atol=0)


def test_checkpoint_can_hold_the_facts(folder: Path, tmp_path: Path) -> None:
    found = facts(folder, fold=None, members=2, feature_share=0.5)
    torch.save(found, tmp_path / "facts.pt")
    assert_same_facts(found, torch.load(tmp_path / "facts.pt", weights_only=True))


def test_id_is_no_feature(folder: Path, tmp_path: Path) -> None:
    found = facts(folder)
    assert "id" not in found["features"]
    ids = np.random.default_rng(0).permutation(10**6)[: len(WORLD.values)].tolist()
    write_table(tmp_path / "covid.train.csv", WORLD.names, WORLD.survey, WORLD.days, WORLD.values, ids)
    assert_same_facts(found, facts(tmp_path), but=("edition", "held_out"))
    with pytest.raises(DataError, match="no feature 'id'"):
        facts(folder, columns=["id"])
    assert facts(folder, columns=[0])["features"][0] == "state0"


def net(found: dict[str, Any]) -> CovidNet:
    return CovidNet(found, [4], "relu", 0.0, False, False, False)


@pytest.mark.parametrize("standardise", ["none", "features", "both"])
def test_standardise(standardise: str, folder: Path) -> None:
    made = data(folder, standardise=standardise)
    assert made.facts is not None
    train = made.split()[0].train
    z = net(made.facts).standardise(torch.from_numpy(WORLD.values[train, :-1]).float().unsqueeze(0))[0].numpy()
    np.testing.assert_array_equal(z[:, : WORLD.states], WORLD.values[train, : WORLD.states])
    if standardise == "none":
        np.testing.assert_allclose(z, WORLD.values[train, :-1], rtol=1e-6)
    else:
        np.testing.assert_allclose(z[:, WORLD.states :].mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(z[:, WORLD.states :].std(0), 1, atol=1e-4)
    y = WORLD.target[train]
    expected = (y.mean(), y.std()) if standardise == "both" else (0, 1)
    np.testing.assert_allclose((made.facts["target_mean"][0], made.facts["target_scale"][0]), expected, rtol=1e-6)


@pytest.mark.parametrize("standardise", ["none", "features", "both"])
@pytest.mark.parametrize("features", ["raw", "differences"])
def test_mark_of_a_state_that_was_never_seen_is_nothing(features: str, standardise: str, folder: Path) -> None:
    made = data(folder, split="state", folds=3, features=features, standardise=standardise)
    assert made.facts is not None
    fold = made.split()[0]
    x = made.val_dataloader().dataset.parts["x"][fold.val]  # type: ignore[attr-defined]
    unseen = sorted(set(WORLD.state[fold.val]))
    assert (x[:, unseen] == 1).any()
    z = net(made.facts).standardise(x.unsqueeze(0))[0]
    assert torch.isfinite(z).all()
    assert (z[:, unseen] == 0).all()


def test_answer_that_never_varies_is_nothing(tmp_path: Path) -> None:
    """Also where rounding makes its changes differ in the last digit, and where it varies in held-out rows."""
    values, a, b = WORLD.values.copy(), WORLD.states, WORLD.states + WORLD.columns
    base = np.random.default_rng(0).uniform(10, 200, len(values))
    values[:, a], values[:, b] = base, base + 0.1
    assert 0 < (values[:, b] - values[:, a]).std() < 1e-13
    values[:, a + 1] = 7
    WORLD.write(tmp_path)
    val = data(tmp_path).split()[0].val
    values[val, a + 1] = 8
    write_table(tmp_path / "covid.train.csv", WORLD.names, WORLD.survey, WORLD.days, values)
    for features, column in (("raw", "answer1"), ("differences", "answer0.1-answer0")):
        found = facts(tmp_path, features=features)
        assert found["scale"][0, found["features"].index(column)] == torch.inf


def test_target_that_never_varies(tmp_path: Path) -> None:
    values = WORLD.values.copy()
    values[:, -1] = 5
    write_table(tmp_path / "covid.train.csv", WORLD.names, WORLD.survey, WORLD.days, values)
    found = facts(tmp_path)
    assert (found["target_mean"].item(), found["target_scale"].item()) == (5, 1)


# features and target


@pytest.mark.parametrize("features", ["raw", "differences"])
@pytest.mark.parametrize("target", ["level", "change"])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_network_of_zeros_says_yesterday_plus_the_mean_change(
    features: str, target: str, share: float, folder: Path
) -> None:
    made = data(folder, features=features, target=target, feature_share=share, members=3)
    assert made.facts is not None
    network = net(made.facts)
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)
    fold = made.split()[0]
    batch = next(iter(made.val_dataloader()))
    predicted = network(batch["x"].expand(3, *batch["x"].shape)).detach().numpy()
    y, yesterday = WORLD.target, WORLD.yesterday
    expected = np.full(len(fold.val), y[fold.train].mean())
    if target == "change":
        expected = yesterday[fold.val] + (y - yesterday)[fold.train].mean()
    np.testing.assert_allclose(predicted, np.tile(expected, (3, 1)), rtol=1e-5)


def test_names_of_differences_say_what_they_are(folder: Path) -> None:
    made = data(folder, features="differences")
    assert made.train is not None
    x, names = feature_matrix(made.train, made.features)
    raw = dict(zip(made.train.columns, made.train.values.T, strict=True))
    for column, name in zip(x.T, names, strict=True):
        later, _, earlier = name.partition("-")
        np.testing.assert_array_equal(column, raw[later] - raw[earlier] if earlier else raw[later])
    assert names[WORLD.states :][: WORLD.columns] == ["answer0.2", "answer1.2", "answer2.2", "tested_positive.1"]


@pytest.mark.parametrize("target", ["level", "change"])
@pytest.mark.parametrize(("select", "k"), [("f_test", 5), ("f_test", 11), ("mutual_info", 5)])
def test_selection_is_by_the_training_rows_scores(select: str, k: int, target: str, folder: Path) -> None:
    made = data(folder, select=select, k=k, target=target, seed=1)
    train = made.split()[0].train
    x, y = WORLD.values[train, :-1], WORLD.target[train] - (WORLD.yesterday[train] if target == "change" else 0)
    if select == "f_test":
        score = np.abs([np.corrcoef(column, y)[0, 1] for column in x.T])  # F rises with the correlation's size
        np.testing.assert_array_equal(np.argsort(score), np.argsort(f_regression(x, y)[0]))
    else:
        score = mutual_info_regression(x, y, random_state=1)
    assert made.facts is not None
    assert made.facts["used"].tolist() == [np.sort(np.argsort(score)[-k:]).tolist()]


def test_selection_of_targets(folder: Path) -> None:
    """The course's medium of 2021: states and the earlier days' tested_positive."""
    for features, expected in (
        ("raw", ["tested_positive", "tested_positive.1"]),
        ("differences", ["tested_positive.1", "tested_positive.1-tested_positive"]),
    ):
        found = facts(folder, select="targets", features=features)
        assert [found["features"][i] for i in found["used"][0]] == [*WORLD.names, *expected]


def test_course_columns_of_2021(real_data: Callable[[str], Path]) -> None:
    """Numbers of course-spec.md: 40 states, then 57 and 75 are the earlier targets; 93 features, 116 in 2022."""
    found = facts(real_data("hw1_covid/2021"), select="targets")
    assert found["used"][0].tolist() == [*range(40), 57, 75]
    assert len(found["features"]) == 93
    assert len(facts(real_data("hw1_covid/2022"))["features"]) == 116


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["answer1"], ["answer1"]),
        (["answer1*"], ["answer1", "answer1.1", "answer1.2"]),
        (["state?", "*.2"], [*WORLD.names, "answer0.2", "answer1.2", "answer2.2"]),
        ([6, "answer0.1", 0, 6], ["state0", "answer0", "answer0.1"]),
        ([16], ["answer2.2"]),
    ],
)
def test_columns_by_name_pattern_and_number(columns: list[int | str], expected: list[str], folder: Path) -> None:
    found = facts(folder, columns=columns, select="f_test", k=99)
    assert [found["features"][i] for i in found["used"][0]] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"columns": ["answer0", "anwser1"]}, "data.columns: no feature 'anwser1'; there are 17: state0, .*answer2.2"),
        ({"columns": ["Answer*"]}, r"data.columns: no feature 'Answer\*'"),
        ({"columns": [17]}, "data.columns: no feature 17"),
        ({"columns": [-1]}, "data.columns: no feature -1"),
        ({"columns": ["tested_positive.2"]}, "data.columns: no feature 'tested_positive.2'"),
        ({"columns": []}, "data.columns is empty"),
        ({"select": "f_test", "k": 18}, "data.k is 18, but there are only 17 features"),
        ({"k": 0}, "data.k is 0: expected at least 1"),
        ({"members": 0}, "data.members is 0: expected at least 1"),
        ({"batch_size": -4}, "data.batch_size is -4: expected at least 1"),
        ({"feature_share": 0.0}, "data.feature_share is 0.0: expected a share above 0"),
        ({"feature_share": 1.5}, "data.feature_share is 1.5: expected a share above 0"),
        ({"folds": 1}, "data.folds is 1: at least 2"),
        ({"fold": 5}, "data.fold is 5: expected 0 to 4, as data.folds is 5"),
        ({"fold": -1}, "data.fold is -1: expected 0 to 4"),
        ({"seed": -1}, "data.seed is -1: expected 0 or more"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], expected: str, folder: Path) -> None:
    with pytest.raises(DataError, match=f"^{expected}"):
        data(folder, **options)


@pytest.mark.parametrize(("share", "size"), [(0.5, 8), (0.3, 5), (0.001, 1), (1.0, 17)])
def test_feature_share_draws_for_each_member(share: float, size: int, folder: Path) -> None:
    used = facts(folder, members=6, feature_share=share)["used"]
    assert used.shape == (6, size)
    assert (used.diff() > 0).all()  # in order, none twice
    assert torch.equal(used, facts(folder, members=6, feature_share=share)["used"])
    assert (len({tuple(row) for row in used.tolist()}) > 1) == (share < 1)
    allowed = set(facts(folder, select="f_test", k=6)["used"][0].tolist())
    within = facts(folder, select="f_test", k=6, members=4, feature_share=0.5)["used"]
    assert within.shape == (4, 3)
    assert set(within.flatten().tolist()) <= allowed


# loaders


def test_training_batches_are_gathered_rows(folder: Path) -> None:
    made = data(folder, batch_size=13, members=2, fold=None, folds=3)
    loader = made.train_dataloader()
    folds = made.split()
    seen: list[np.ndarray] = []
    for batch in loader:
        members, rows = batch["row"].shape
        assert members == 6
        assert rows <= 13
        np.testing.assert_allclose(batch["x"], WORLD.values[batch["row"], :-1], rtol=1e-6)
        np.testing.assert_allclose(batch["y"], WORLD.target[batch["row"]], rtol=1e-6)
        assert batch["x"].dtype == batch["y"].dtype == torch.float32
        seen.append(batch["row"].numpy())
    for member, rows in enumerate(np.hstack(seen)):
        assert set(rows) == set(folds[member // 2].train)
    assert len(loader) == len(seen) == -(-max(len(f.train) for f in folds) // 13)


@pytest.mark.parametrize("fold", [1, None])
@pytest.mark.parametrize("world", [1, 3])
def test_held_out_rows_are_each_seen_once_with_their_fold(fold: int | None, world: int, folder: Path) -> None:
    made = data(folder, split="grouped", fold=fold)
    folds = made.split()
    batches = []
    for rank in range(world):
        made.trainer = stub_trainer(rank, world)
        batches += list(made.val_dataloader())
    assert len(batches) == world
    rows = np.concatenate([b["row"] for b in batches])
    expected = folds[1].val if fold == 1 else np.arange(len(WORLD.values))
    np.testing.assert_array_equal(np.sort(rows), np.sort(expected))
    for batch in batches:
        np.testing.assert_allclose(batch["x"], WORLD.values[batch["row"], :-1], rtol=1e-6)
        np.testing.assert_allclose(batch["y"], WORLD.target[batch["row"]], rtol=1e-6)
        assert all(int(row) in folds[int(k)].val for row, k in zip(batch["row"], batch["fold"], strict=True))


def stub_trainer(rank: int = 0, world: int = 1, shares: bool = False) -> Any:
    """As much of a Trainer as the datamodule asks for."""
    return SimpleNamespace(
        global_rank=rank, world_size=world, strategy=SimpleNamespace(root_device=torch.device("cpu")),
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=shares),
        lightning_module=None,
    )  # fmt: skip


def test_ranks_share_the_training_rows(folder: Path) -> None:
    made = data(folder, batch_size=20)
    whole = [batch["row"] for batch in made.train_dataloader()]
    shares = []
    for rank in range(2):
        made.trainer = stub_trainer(rank, 2)
        shares.append([batch["row"] for batch in made.train_dataloader()])
    for batch, a, b in zip(whole, *shares, strict=True):
        assert sorted(batch[0].tolist()) == sorted([*a[0].tolist(), *b[0].tolist()])
    made.trainer = stub_trainer(0, 2, shares=True)
    with pytest.raises(DataError, match=r"set trainer\.use_distributed_sampler to false"):
        made.train_dataloader()


def test_prediction_is_in_the_order_of_the_test_file(folder: Path, tmp_path: Path) -> None:
    made = data(folder, "predict")
    assert made.train is None
    assert made.facts is None
    (batch,) = made.predict_dataloader()
    expected = World(windows=4, seed=5).values
    np.testing.assert_allclose(batch["x"], expected[:, :-1], rtol=1e-6)
    assert set(batch) == {"row", "x"}
    header, rows = made.submission(np.linspace(0, 1, len(expected), dtype=np.float32))
    assert header == ["id", "tested_positive"]
    assert [row[0] for row in rows] == list(range(len(expected)))
    assert all(type(row[1]) is float for row in rows)
    with pytest.raises(ValueError, match="zip"):
        made.submission(np.zeros(3))


def test_labels_and_score(folder: Path) -> None:
    made = data(folder)
    ids, true = made.labels(np.array([4, 2]))
    assert ids == [4, 2]
    np.testing.assert_array_equal(true, WORLD.target[[4, 2]])
    assert CovidData.score(np.array([1.0, 2.0]), np.array([2.0, 4.0])) == 2.5


def test_test_file_with_targets_is_scored(tmp_path: Path) -> None:
    WORLD.write(tmp_path)
    test = World(seed=3)
    test.write(tmp_path, "test")
    made = data(tmp_path, "test")
    (batch,) = made.test_dataloader()
    np.testing.assert_allclose(batch["y"], test.target, rtol=1e-6)
    assert "fold" not in batch
    assert made.describe_test().startswith(f"covid.test.csv, {len(test.target)} rows")


def test_without_targets_the_held_out_rows_are_scored(folder: Path) -> None:
    made = data(folder, "test")
    (batch,) = made.test_dataloader()
    np.testing.assert_array_equal(batch["row"], made.split()[0].val)
    assert made.describe_test().startswith("held-out rows of the training file")


# files


def test_parts_that_are_missing(tmp_path: Path) -> None:
    for stage in ("fit", "validate"):
        WORLD.write(tmp_path / "only_test", "test", labelled=False)
        with pytest.raises(DataError, match=r"only_test: no covid\.train\.csv here.*leeml data fetch hw1_covid"):
            data(tmp_path / "only_test", stage)
    WORLD.write(tmp_path / "only_train")
    with pytest.raises(DataError, match=r"only_train: no covid\.test\.csv here.*leeml data fetch hw1_covid"):
        data(tmp_path / "only_train", "predict")
    with pytest.raises(DataError, match=r"only_test: nothing to score"):
        data(tmp_path / "only_test", "test").test_dataloader()
    path = WORLD.write(tmp_path / "unlabelled", labelled=False)
    with pytest.raises(DataError, match=re.escape(f"{path}:1: the last day has no 'tested_positive' column")):
        data(tmp_path / "unlabelled")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (World(columns=5), r"it lacks 0|it lacks none, has 3 \(answer3, answer3.1, answer3.2\) too many"),
        (World(columns=3), r"it lacks 3 \(answer2, answer2.1, answer2.2\), has none too many"),
        (World(days=5), r"it lacks none, has 8 \(tested_positive.2, answer0.3, answer1.3, ...\) too many"),
        (World(states=4), r"it lacks 2 \(state4, state5\), has none too many"),
    ],
)
def test_files_of_another_edition_than_the_models(found: World, expected: str, folder: Path, tmp_path: Path) -> None:
    for part, stage in (("test", "predict"), ("train", "validate")):
        path = found.write(tmp_path / part, part, labelled=part == "train")
        made = CovidData(dir=str(tmp_path / part))
        made.expect(facts(folder))
        with pytest.raises(DataError, match=re.escape(f"{path}:1: other columns than the model") + f".*(?:{expected})"):
            made.setup(stage)


def test_columns_in_another_order_and_features_of_the_other_kind(folder: Path, tmp_path: Path) -> None:
    survey = [WORLD.survey[1], WORLD.survey[0], *WORLD.survey[2:]]
    write_table(tmp_path / "covid.test.csv", WORLD.names, survey, WORLD.days, WORLD.values, labelled=False)
    made = CovidData(dir=str(tmp_path))
    made.expect(facts(folder))
    with pytest.raises(DataError, match=r"covid\.test\.csv:1: other columns .*: it has another order"):
        made.setup("predict")
    made = CovidData(dir=str(folder), features="differences")
    made.expect(facts(folder))
    with pytest.raises(DataError, match=r"data\.features is 'differences', but the model was trained"):
        made.setup("predict")
    made = CovidData(dir=str(folder))
    made.expect(facts(folder))
    made.setup("predict")


def test_2023_by_its_file_names(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 90, (80, 34 + 54))
    values[:, :34] = np.eye(34)[np.arange(80) % 34]
    here = tmp_path / "hw1_covid" / "2023"
    here.mkdir(parents=True)
    write_table(here / "covid_train.csv", STATES_2023, SURVEY_2023, 3, values)
    write_table(here / "covid_test.csv", STATES_2023, SURVEY_2023, 3, values, labelled=False)
    made = CovidData(root=str(tmp_path))
    for stage in ("fit", "test", "predict"):
        made.setup(stage)
    assert made.facts is not None
    assert made.facts["edition"] == "2023"
    assert len(made.facts["features"]) == 87
    assert made.facts["features"].index("tested_positive.1") == 69
    assert [found.edition for found in made.baselines()] == ["2023"]


def test_baselines_of_the_course(real_data: Callable[[str], Path], folder: Path) -> None:
    assert [known.edition for known in data(real_data("hw1_covid/2021")).baselines()] == ["2021"]
    assert [known.edition for known in data(real_data("hw1_covid/2022"), "predict").baselines()] == ["2022"]
    assert CovidData().baselines() == data(folder).baselines() == []


def test_where_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "hw1_covid"

    def found(**options: Any) -> Path:
        return CovidData(root=str(tmp_path), **options).locate()

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(DataError, match=match):
            found(**options)

    ways = "Ways to get them.*by hand.*data fetch hw1_covid.*data sample hw1_covid.*--data.root DIR or LEEML_DATA"
    refused(f"^{re.escape(str(home))}: no hw1_covid files found. {ways}")
    home.mkdir()
    (home / "notes.txt").touch()
    (home / "2020").mkdir()
    refused(ways)
    refused(f"2022: no files of edition '2022' here.*it holds no edition.*{ways}", edition="2022")

    WORLD.write(home / "2022")
    assert found() == found(edition="2022") == found(edition=2022) == home / "2022"
    refused("2021: no files of edition '2021' here.*it holds 2022", edition="2021")
    WORLD.write(home / "2021", "test", labelled=False)
    refused("several editions here: 2021, 2022. Choose one, e.g. --data.edition 2021")
    assert found(edition="2021") == home / "2021"

    WORLD.write(home)  # files straight in the homework's folder
    assert found() == home
    assert found(edition="2022") == home / "2022"
    assert found(edition="2023") == home

    elsewhere = tmp_path / "elsewhere"
    refused(f"^{re.escape(str(elsewhere))}: no hw1_covid files in this folder.*--data.dir.*{ways}", dir=str(elsewhere))
    WORLD.write(elsewhere)
    assert found(dir=str(elsewhere), edition="2021") == elsewhere

    monkeypatch.setenv("LEEML_DATA", str(tmp_path))
    assert default_root() == tmp_path
    assert CovidData().locate() == home
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LEEML_DATA", "~")
    assert CovidData().locate() == home
    assert CovidData(root="~").root == tmp_path
    for value in ("", None):
        monkeypatch.setenv("LEEML_DATA", value) if value is not None else monkeypatch.delenv("LEEML_DATA")
        assert default_root() == PROJECT / "data"


@pytest.mark.parametrize("edition", ["2022", "'2022'", "null"])
def test_edition_in_a_config(edition: str) -> None:
    """A year in YAML is a number; the folder's name is not."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(HomeworkData, "data")
    parser.add_argument("--config", action="config")
    text = f"data: {{class_path: datamodules.hw1_covid.CovidData, init_args: {{edition: {edition}}}}}"
    made = parser.instantiate_classes(parser.parse_args(["--config", text])).data
    assert made.edition == (None if edition == "null" else "2022")


def test_published_files(real_data: Callable[[str], Path]) -> None:
    """The test files at hand are the course's own (the training files are not byte for byte: see their README)."""
    for year in ("2021", "2022"):
        path = real_data(f"hw1_covid/{year}") / "covid.test.csv"
        remote = next(f for f in PUBLISHED["hw1_covid"][year] if f.name == path.name)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == remote.sha256
    names = {f.name for files in PUBLISHED["hw1_covid"].values() for f in files}
    for name in names:
        assert CovidData.has_files(Path("/nowhere")) is False
        assert name in {"covid.train.csv", "covid.test.csv", "covid_train.csv", "covid_test.csv"}


def test_the_zip_of_the_competition_is_unpacked(tmp_path: Path) -> None:
    write_covid(tmp_path / "files")
    home = tmp_path / "root" / "hw1_covid"
    archive = shutil.make_archive(str(home / "ml2022spring-hw1"), "zip", tmp_path / "files")
    for edition in (None, "2022"):
        with pytest.raises(DataError, match=f"unpack it first: leeml data prepare hw1_covid --source {archive}"):
            CovidData(root=str(tmp_path / "root"), edition=edition).setup("fit")
    assert CovidData.prepare(home) == [home / "ml2022spring-hw1"]
    CovidData(root=str(tmp_path / "root")).setup("fit")
