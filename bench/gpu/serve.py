"""LVSPEC against no speculation on a GPU, at the sizes of a real pair: random weights, acceptance lengths forced.

Speed at these sizes depends on shapes and on how many drafts are accepted, not on what the weights say. So the models
are written as configs alone (SGLang's `--load-format dummy`, the demo pair's tokenizer with a padded vocabulary), and
SGLang's own switch for such runs, SGLANG_SIMULATE_ACC_LEN, commits as many tokens a round as were measured elsewhere.

    python -m bench.gpu.serve --out build/serve.json            (`--dry-run` prints the commands)

| arm | server | tokens a round |
|---|---|---|
| none | no speculation | 1 |
| strict | LVSPEC, preset strict | T of `strict`, and one |
| loose | LVSPEC, preset balanced: the scorer rides on each verify forward | T of `balanced`, and one |

The switch acts inside SGLang's `eagle_sample` (srt/speculative/eagle_utils.py:807), whose result stands for strict
requests; a loose rule would replace it. So all requests are text, which is strict anyway, and `loose` has the scorer's
cost but not that of `row_choice` and `relax`: `make gpu-bench` says what those are.

This program has not run against a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.gpu.models import CALIBRATED_LAYERS, DRAFT, TARGET, Model, calibrated_heads

PAIR = Path("demo/pair")
LENGTHS = Path("bench/results/fidelity-presets-fresh.json")
PRESETS = {"strict": "strict", "loose": "balanced"}
TOKENS_OF_TEXT = range(200, 1000)  # ids of the demo pair's tokenizer that are words
K = 10
WEIGHTS = ("*.safetensors", "lvspec.json")
# Qwen2.5-VL's vision tower, the same in all sizes but for what it gives out.
VISION = {
    "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_size": 1280, "intermediate_size": 3456,
    "num_heads": 16, "tokens_per_second": 2, "window_size": 112,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One server: its name, its command line without the port, and what its environment has beyond ours."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


def write_model(model: Model, of: Path, folder: Path) -> None:
    """A folder that SGLang serves with dummy weights: the files beside a checkpoint's weights, and a config.

    Args:
        of: a folder of the demo pair.
    """
    shutil.copytree(of, folder, ignore=shutil.ignore_patterns(*WEIGHTS))
    config = json.loads((of / "config.json").read_text())
    text = config["text_config"]
    text |= {
        "hidden_size": model.hidden, "intermediate_size": model.mlp, "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads, "vocab_size": model.vocabulary,
        "max_position_embeddings": 128_000, "layer_types": ["full_attention"] * model.layers,
        "rope_parameters": {"mrope_section": [16, 24, 24], "rope_theta": 1e6, "rope_type": "default"},
    }  # fmt: skip
    config["vision_config"] |= VISION | {"out_hidden_size": model.hidden}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_calibration_file(target: Path, draft: Path, model: Model) -> None:
    """Sixteen heads in four layers, as `lvspec calibrate` finds; with random weights no numbers would mean more."""
    from sgl_lvspec.relevance.calibration import Calibration, HeadWeight, write_calibration
    from sgl_lvspec.relevance.identity import identify

    layers = {model.layers * (index + 1) // (CALIBRATED_LAYERS + 1) for index in range(CALIBRATED_LAYERS)}
    heads = tuple(HeadWeight(layer, head, 0.1) for layer in sorted(layers) for head in calibrated_heads(model))
    write_calibration(Calibration(identify(str(target)), identify(str(draft)), heads), target / "lvspec.json")


def measured_lengths(path: Path) -> dict[str, float]:
    """Tokens a round of each arm, from a file of `make bench-fidelity`: T and the target's own token."""
    arms = {arm["name"]: arm["T"] for arm in json.loads(path.read_text())["arms"]}
    return {"none": 1.0, **{name: arms[preset] + 1.0 for name, preset in PRESETS.items()}}


def arms(target: Path, draft: Path, lengths: dict[str, float], more: tuple[str, ...]) -> Iterator[Arm]:
    """The three servers."""
    common = (
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(target), "--load-format", "dummy",
        "--dtype", "bfloat16", "--skip-server-warmup", "--enable-metrics", *more,
    )  # fmt: skip
    # Both arms must see the same frame times, and find nothing that is looked up elsewhere.
    offline = {"HF_HUB_OFFLINE": "1"}
    yield Arm("none", (*common, "--lvspec-video-time", "fixed"), offline)
    for name, preset in PRESETS.items():
        speculative = (
            "--speculative-algorithm", "LVSPEC", "--speculative-draft-model-path", str(draft),
            "--speculative-num-steps", str(K), "--lvspec-preset", preset,
        )  # fmt: skip
        yield Arm(name, common + speculative, {**offline, "SGLANG_SIMULATE_ACC_LEN": f"{lengths[name]:g}"})


def request(number: int, context: int, tokens: int) -> dict[str, Any]:
    """Random text of so many tokens, greedy; no two have a prefix in common."""
    rng = random.Random(number)
    ids = rng.choices(TOKENS_OF_TEXT, k=context)
    return {"input_ids": ids, "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}}


def asked(url: str, requests: int, context: int, tokens: int, first: int) -> dict[str, float]:
    """So many requests at once: tokens a second behind the first piece of each, and of all together."""
    from bench.context.client import Endpoint

    endpoint = Endpoint(url)
    bodies = [request(first + number, context, tokens) for number in range(requests)]
    start = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        answers = list(pool.map(endpoint.ask, bodies))
    seconds = time.perf_counter() - start
    rates = [rate for answer in answers if (rate := answer.decode_rate) is not None]
    rounds, accepted = (sum(getattr(answer, name) for answer in answers) for name in ("rounds", "accepted"))
    return {
        "decode_tokens_a_second": statistics.median(rates),
        "tokens_a_second": sum(len(answer.ids) for answer in answers) / seconds,
        "ttft_ms": statistics.median(answer.first_s for answer in answers) * 1e3,
        "T": accepted / rounds if rounds else 0.0,
    }


def measure(arm: Arm, options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """One server from start to end; the first answers at each batch size are not counted."""
    from bench.context.servers import running

    found: dict[str, Any] = {}
    environment = {**os.environ, **arm.environment}
    with running(lambda port: [*arm.command, "--port", str(port)], environment, log, arm.name) as url:
        for number in options.requests:
            asked(url, number, options.context, min(options.tokens, 64), 10_000 * number)
            found[str(number)] = asked(url, number, options.context, options.tokens, 10_000 * number + 5_000)
            print(arm.name, number, found[str(number)], flush=True)
    return found


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: what makes no sense, with the reason.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/serve.json"))
    parser.add_argument("--lengths", type=Path, default=LENGTHS, help="file of bench-fidelity with T of the presets")
    parser.add_argument("--layers", type=int, default=TARGET.layers, help="of the target; fewer where memory asks")
    parser.add_argument("--draft-layers", type=int, default=DRAFT.layers)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--context", type=int, default=20_000, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--server-flag", action="append", default=[], help="one more word of each command line")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, start nothing")
    options = parser.parse_args(given)
    for name in ("layers", "draft_layers", "context", "tokens"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} needs at least 1; found {getattr(options, name)}")
    if options.layers < 2 * CALIBRATED_LAYERS:
        parser.error(f"--layers needs at least {2 * CALIBRATED_LAYERS}; found {options.layers}")
    if min(options.requests) < 1 or len(set(options.requests)) != len(options.requests):
        parser.error(f"--requests needs different numbers of at least 1; found {options.requests}")
    if not options.lengths.is_file():
        parser.error(f"--lengths needs a file of make bench-fidelity; found none at {options.lengths}")
    return options


def main(given: list[str] | None = None) -> None:
    """Write the pair, measure each arm, write the results."""
    options = parse(given)
    lengths = measured_lengths(options.lengths)
    models = replace(TARGET, layers=options.layers), replace(DRAFT, layers=options.draft_layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target, draft = folder / "target", folder / "draft"
        servers = list(arms(target, draft, lengths, tuple(options.server_flag)))
        if options.dry_run:
            for arm in servers:
                print(shlex.join([*(f"{key}={value}" for key, value in arm.environment.items()), *arm.command]))
            return
        from bench.gpu.machine import has_gpu, provenance

        if not has_gpu():
            print("serve: skipped: no GPU")
            return
        for model, path in zip(models, (target, draft), strict=True):
            write_model(model, PAIR / path.name, path)
        write_calibration_file(target, draft, models[0])
        result: dict[str, Any] = {
            "provenance": provenance("bench.gpu.serve"),
            "settings": {name: str(value) for name, value in vars(options).items()},
            "tokens_a_round": lengths,
            "arms": {},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for arm in servers:
            result["arms"][arm.name] = measure(arm, options, options.out.with_suffix(f".{arm.name}.log"))
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
