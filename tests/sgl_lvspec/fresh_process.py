"""What the plugin does to a Python process that has never seen it: looked at once, in a child, and told as JSON.

Tests call `facts`; the child runs this file. In the tests' own process other plugins' and tests' hooks would be in the
way, and hooks cannot be taken back.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.sgl_lvspec.checkpoints import write_draft, write_target

# Whole command lines, as modes of SGLang are asked for; what each resolves to or is refused with is told.
ON_CUDA = {
    "nothing": [],
    "--disable-overlap-schedule": ["--disable-overlap-schedule"],
    "two ranks": ["--tp-size", "2"],
    "two copies": ["--dp-size", "2"],
}
REFUSED = {
    "--pp-size": ["--pp-size", "2"],
    "--attn-dp-size": ["--tp-size", "2", "--dp-size", "2", "--enable-dp-attention"],
    "--enable-hierarchical-cache": ["--enable-hierarchical-cache"],
    "--disaggregation-mode": ["--disaggregation-mode", "decode"],
    "--enable-lora": ["--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "all"],
    "--mm-feature-transport": ["--mm-feature-transport", "cuda_ipc"],
}
LIMIT_S = 600  # about 15 s on an idle machine
RESOLVED = (
    "speculative_num_steps", "speculative_num_draft_tokens", "speculative_eagle_topk", "max_running_requests",
    "attention_backend", "prefill_attention_backend", "decode_attention_backend", "disable_overlap_schedule",
    "enable_mixed_chunk", "speculative_algorithm",
)  # fmt: skip


@functools.cache
def facts() -> dict[str, Any]:
    """What the child found out; see `_examine`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SGLANG_PLUGINS", None)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.sgl_lvspec.fresh_process", folder],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _examine(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # SGLang as it is, with the modules that we hook once LVSPEC is named.
    import sglang.srt.managers.tokenizer_manager
    import sglang.srt.multimodal.processors.qwen_vl
    import sglang.srt.speculative.standalone_worker_v2  # noqa: F401
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.server_args import prepare_server_args

    plain = ["--model-path", str(write_target(folder / "target")), "--device", "cpu"]
    before = _definitions()
    load_plugins()
    found["changed by loading"] = _changes(before)
    found["hooked by loading"] = sorted(HookRegistry._patched)

    from sgl_lvspec import plugin
    from sgl_lvspec.flags import config_of

    plugin.load()
    HookRegistry.apply_hooks()
    found["hooks registered"] = {target: len(hooks) for target, hooks in HookRegistry._hooks.items()}

    before = _definitions()
    server_args = prepare_server_args(plain)
    found["changed by a plain command line"] = _changes(before)
    found["plain record has settings"] = hasattr(server_args, "_lvspec")
    server_args.resolve_once()
    found["plain resolved"] = {name: _resolved(server_args, name) for name in RESOLVED}
    found["changed by resolving it"] = _changes(before)

    named = [
        *plain, "--speculative-algorithm", "lvspec", "--speculative-draft-model-path",
        str(write_draft(folder / "draft")), "--enable-mixed-chunk", "--lvspec-video-time", "fixed",
    ]  # fmt: skip
    server_args = prepare_server_args(named)
    found["hooked by naming LVSPEC"] = sorted(HookRegistry._patched)
    server_args.resolve_once()
    found["resolved"] = {name: _resolved(server_args, name) for name in RESOLVED}
    found["hooked by resolving"] = sorted(HookRegistry._patched)
    copy = pickle.loads(pickle.dumps(server_args))
    found["settings in the parent"] = repr(config_of(server_args))
    found["settings in the child"] = repr(config_of(copy))

    found |= _worker(server_args)
    found["overlap off on cuda"], found["refused"] = _modes(plain[:2], named[len(plain) : len(plain) + 4])
    parser = argparse.ArgumentParser()
    type(server_args).add_cli_args(parser)
    found["help"] = parser.format_help()
    return found


def _modes(target: list[str], lvspec: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Whether the overlap scheduler is off, by what was asked for beside LVSPEC; and messages by refused flag."""
    from sglang.srt.server_args import prepare_server_args

    def resolve(device: str, more: list[str]) -> Any:
        server_args = prepare_server_args([*target, "--device", device, *lvspec, *more])
        server_args.resolve_once()
        return server_args

    cuda = ["--attention-backend", "flashinfer", "--sampling-backend", "pytorch"]
    is_off = {
        name: _resolved(resolve("cuda", [*cuda, *more]), "disable_overlap_schedule") for name, more in ON_CUDA.items()
    }
    refused = {}
    for flag, more in REFUSED.items():
        try:
            resolve("cpu", more)
            refused[flag] = "it starts"
        except ValueError as error:
            refused[flag] = str(error)
    return is_off, refused


def _worker(server_args: Any) -> dict[str, Any]:
    """What the scheduler gets when it asks the algorithm for its worker."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.speculative import eagle_worker_common, standalone_worker_v2
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    before, flashinfer = set(HookRegistry._patched), ATTENTION_BACKENDS["flashinfer"]
    algorithm = SpeculativeAlgorithm.from_string("lvspec")
    workers = [algorithm.create_worker(server_args) for _ in range(2)]
    return {
        "supports overlap": algorithm.supports_overlap,
        "workers": [f"{worker.__module__}.{worker.__qualname__}" for worker in workers],
        "hooked by the worker": sorted(HookRegistry._patched - before),
        "draft worker": standalone_worker_v2.StandaloneDraftWorker.__qualname__,
        "eagle_sample is hooked where it is used": hasattr(eagle_worker_common.eagle_sample, "__wrapped__"),
        "makers of flashinfer": [flashinfer.__module__, ATTENTION_BACKENDS["flashinfer"].__module__],
    }


def _resolved(server_args: Any, name: str) -> Any:
    from sglang.srt.arg_groups.overrides import resolution_result

    return resolution_result(server_args, name)


def _definitions() -> dict[str, int]:
    """Identity of every function and class in SGLang's loaded modules and of every attribute of those classes."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "sglang":
            continue
        for name, value in list(vars(module).items()):
            if callable(value):
                found[f"{module_name}.{name}"] = id(value)
            if isinstance(value, type) and value.__module__ == module_name:
                found |= {f"{module_name}.{name}.{key}": id(member) for key, member in vars(value).items()}
    return found


def _changes(before: dict[str, int]) -> list[str]:
    """What is another object now; what was loaded since does not count."""
    now = _definitions()
    noise = ("__abstractmethods__", "_abc_impl", "__annotations__", "__doc__")
    return sorted(
        name for name, identity in before.items() if now.get(name) != identity and name.rpartition(".")[2] not in noise
    )


if __name__ == "__main__":
    print("\n" + json.dumps(_examine(Path(sys.argv[1]))))
