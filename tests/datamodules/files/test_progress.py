import io
import sys

import pytest

from datamodules.files.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [Terminal, io.StringIO])
def test_a_log_gets_one_state_of_quick_work_and_keeps_no_bar(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", said := stderr())
    with progress("reading files", range(1000)) as bar:
        bar.start_t -= 1.0  # a second ago
        bar.last_print_t -= 1.0
        assert list(bar) == list(range(1000))
    states = said.getvalue().count("reading files:")
    assert states == 1 if stderr is io.StringIO else states > 1
    assert not said.getvalue().split("\r")[-2].strip()  # what was left is wiped out
