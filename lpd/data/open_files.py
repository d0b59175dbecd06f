"""How many files a process may have open. A memory map holds on to its file, and systems begin with
1024 or so: the shards of 8 million images are as many."""

import resource
from pathlib import Path

from lpd.errors import InputError

_MOST = 1 << 16
"""No process needs more; some systems have no limit, which others count up to."""
_OPEN = Path("/proc/self/fd")
"""Where Linux lists what a process has open."""
_OTHERS = 256
"""For all else that a process has open."""


def open_files_allowed(count: int) -> int:
    """Ask the system to let this process have so many more files open.

    Returns:
        How many it lets, ``count`` at most.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_open = len(list(_OPEN.iterdir())) if _OPEN.is_dir() else 0
    wanted = is_open + count + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
        soft = max(soft, min(2 * wanted, ceiling))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    elif soft == resource.RLIM_INFINITY:
        return count
    return max(0, min(count, soft - is_open - _OTHERS))


def check_open_files(count: int, what: str) -> None:
    """Check that so many more files may be open, and ask the system for them.

    Args:
        count: how many.
        what: what they are, for messages.

    Raises:
        InputError: the system does not allow it.
    """
    allowed = open_files_allowed(count)
    if allowed < count:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        raise InputError(
            f"{what} has {count} files, which are open at the same time, and this system lets a "
            f"process have {limit} of all kinds: raise the limit (ulimit -Hn) to "
            f"{limit - allowed + count} or more"
        )
