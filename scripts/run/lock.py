"""Locks that die with their process."""

try:
    import fcntl
except ImportError:  # Windows has none of these
    fcntl = None  # type: ignore[assignment]


def lock(file: int) -> bool:
    """Claim an open file for this process, until it closes it or ends, however it dies; False where another has it.

    It is a POSIX record lock: unlike flock's, it is not shared with forked processes such as those that load data,
    which may outlive a killed parent for some seconds. Where the file system has no locks, every claim succeeds.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True
