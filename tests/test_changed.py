"""`make check` finds the tests of what changed."""

from changed import ALWAYS, belonging


def test_a_changed_file_leads_to_its_tests():
    paths = ["modules/nets/cnn.py", "tests/modules/nets/test_mlp.py", "tests/conftest.py", "README.md", "gone/away.py"]
    paths += ["tests/modules/nets/test_gone.py"]
    assert belonging(paths) == [*ALWAYS, "tests/modules/nets/test_cnn.py", "tests/modules/nets/test_mlp.py"]
    assert belonging([]) == list(ALWAYS)


def test_a_file_without_tests_of_its_own_leads_to_those_that_import_it():
    assert "tests/scripts/test_documented_commands.py" in belonging(["scripts/train.py"])
    assert belonging(["scripts/gone.py"]) == list(ALWAYS)
