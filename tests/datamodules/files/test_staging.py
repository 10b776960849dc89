"""Files appear when all are whole, and go again where one cannot."""

import pytest

from datamodules.files.staging import move_all, staging


def test_what_a_killed_run_left_is_cleared_and_nothing_stays(tmp_path):
    place = tmp_path / "there" / ".train.part"
    (place / "old").mkdir(parents=True)
    with staging(place) as made:
        assert list(made.iterdir()) == []
        (made / "new").write_text("1")
    assert list(place.parent.iterdir()) == []
    with pytest.raises(FileNotFoundError), staging(place) as made:
        (made / "gone").rename(made / "new")
    assert list(place.parent.iterdir()) == []


def test_all_are_moved_or_only_what_was_there_stays(tmp_path):
    made, place = tmp_path / "made", tmp_path / "place"
    for folder in (made, place):
        folder.mkdir()
    (made / "a").mkdir()
    for name in ("a/inner", "b", "c"):
        (made / name).write_text("new")
    (place / "b").write_text("old")
    moves = [(made / name, place / name) for name in ("a", "b", "gone", "c")]
    with pytest.raises(FileNotFoundError):
        move_all(moves)
    assert [path.name for path in place.iterdir()] == ["b"]
    (made / "a").mkdir()
    (made / "b").write_text("newer")
    move_all((made / name, place / name) for name in ("a", "b", "c"))
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "c"]
    assert (place / "b").read_text() == "newer"
    assert list(made.iterdir()) == []
