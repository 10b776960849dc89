"""What all tests share: the real data where it lies, one thread each, and Hypothesis without deadlines."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

PROJECT = Path(__file__).resolve().parent.parent
# Set before torch is imported, and for processes that tests start: each xdist worker has a core of its own, and threads
# of two workers on the same core wait for each other longer than they compute.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(PROJECT))  # else tests/datamodules, which mirrors the tree, is taken for our package

settings.register_profile("leeml", deadline=None, derandomize=True)  # the same examples on every machine
settings.register_profile("search", deadline=None, derandomize=False)  # new ones each time: --hypothesis-profile search
settings.load_profile("leeml")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train whole runs come first: a long one at the end would leave the other worker with nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Libraries stay until the end: the garbage collector need not go through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images go to a folder of the tests."""
    os.environ["LEEML_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that asks for more threads (as `leeml bench` does) does not leave them to the next ones."""
    yield
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() != 1:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def lightning_talks() -> Iterator[None]:
    """A test that quiets Lightning (as `leeml bench` does) does not quiet it for the next ones."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        if level:  # set when Lightning is imported, which may be in the test
            logger.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Ctrl-C is heard, also by processes that tests start, where a shell in whose background pytest runs mutes it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A folder of the real data, such as real_data("hw1_covid/2021"); the test is skipped where it is not there."""

    def find(part: str) -> Path:
        roots = [Path(os.environ.get("LEEML_DATA") or PROJECT / "data"), PROJECT.parent / "shared" / "data"]
        for root in roots:
            if (root / part).is_dir():
                return root / part
        pytest.skip(f"no real data: {part} is neither in {roots[0]} (LEEML_DATA) nor in {roots[1]}")

    return find
