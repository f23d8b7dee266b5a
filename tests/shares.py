"""What runs in one process where several share the tests (`pytest -n 2`, which `make test` does)."""

from __future__ import annotations

from typing import Any

import pytest

SHARED_SERVERS = "tests/server"
# Modules that start servers of their own and use none of the shared ones but the target alone.
ON_THEIR_OWN = (
    "test_calibrate.py",
    "test_cascade.py",
    "test_context.py",
    "test_guard.py",
    "test_long_video.py",
    "test_qwen3_vl.py",
    "test_security.py",
    "test_slots.py",
    "test_torture.py",
)


def share_of(nodeid: str) -> str:
    """All tests of the shared servers, or else a file: they run one after the other in one process, which starts what
    they share once."""
    path = nodeid.partition("::")[0]
    is_theirs = path.startswith(SHARED_SERVERS + "/") and not path.endswith(ON_THEIR_OWN)
    return SHARED_SERVERS if is_theirs else path


def scheduler(config: pytest.Config, log: Any) -> Any:
    """A scheduler of pytest-xdist: a process that has finished a share takes the next one in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Shares(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return share_of(nodeid)

    config.option.loadscopereorder = False  # else by the number of tests, which says nothing about their time
    return Shares(config, log)
