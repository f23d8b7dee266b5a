"""Imports our kernels before any test module can import Triton, which settles there whether they run interpreted.

On a machine without a GPU they do, on CPU tensors; with one they are compiled. Servers that tests start are not told.
Also the order of the tests, in one process and in several.
"""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch

from tests.shares import SHARED_SERVERS, scheduler, share_of

with pytest.MonkeyPatch.context() as environment:
    if not torch.cuda.is_available():
        environment.setenv("TRITON_INTERPRET", "1")
        import triton.experimental.gluon  # noqa: F401 (Triton imports it at the first launch, and asserts the mode)
    import lvspec_kernels  # noqa: F401

# How long an example takes depends on what else the machine does, and these tests are of results.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Called where several processes share the tests."""
    return scheduler(config, log)


@pytest.hookimpl(trylast=True)  # after the folders' own conftest files have set their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What answers in milliseconds runs first, what starts servers last; of several processes one begins with the
    shared servers, because that takes longest."""
    is_one_of_several = hasattr(config, "workerinput")

    def turn(item: pytest.Item) -> int:
        if is_one_of_several and share_of(item.nodeid) == SHARED_SERVERS:
            return 0
        return 1 if item.get_closest_marker("server") is None else 2

    items.sort(key=turn)
