"""Process set-up that SGLang asks of the CPU engine on ARM: threads, and the choice of collectives.

Called once per rank by `sglang/srt/distributed/bootstrap.py` (0.5.23, `_init_cpu_threads_env`) through
`torch.ops.sgl_kernel`. On x86 SGLang skips both calls, because `convert_weight_packed` is missing here by design.
"""

from __future__ import annotations

import os

import torch


def init_cpu_threads_env(cpu_ids: str) -> str:
    """Bind this process to `cpu_ids` and let torch use one thread on each.

    Args:
        cpu_ids: cores as SGLang writes them, e.g. `0,1` or `0-3,8`.

    Returns:
        A line that says what was done.
    """
    cores: set[int] = set()
    for part in cpu_ids.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:  # none of them belongs to this machine or container
        raise ValueError(
            f"SGLANG_CPU_OMP_THREADS_BIND needs cores of this machine, numbered from 0 to {(os.cpu_count() or 1) - 1}, "
            f"got {cpu_ids!r}; name some of these for each rank, with | between ranks."
        ) from error
    bound = os.sched_getaffinity(0)
    torch.set_num_threads(len(bound))
    return f"bound to cores {sorted(bound)}"


def initialize(size: int, rank: int) -> None:
    """Decline shared-memory collectives, so that SGLang's ranks talk through gloo.

    `LOCAL_SIZE` is SGLang's own switch for them (`is_shm_available`), and it sets the variable right before this call.

    Args:
        size, rank: ranks of tensor parallelism on this machine, and which of them this process is.
    """
    del size, rank
    os.environ.pop("LOCAL_SIZE", None)
