"""`bench.gpu` without a GPU: shapes, byte counts, tables and the programs' ends, on tiny shapes and a timer of ours."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu import kernel_tests, machine, measure, run
from bench.gpu.models import (
    MODELS,
    QWEN_7B,
    QWEN_32B,
    REQUESTS,
    SLOTS,
    WIDTH,
    Model,
    Shape,
    calibrated_heads,
    kv_heads_read,
)
from bench.gpu.ops import LOGITS, OPS, Op, op_of
from bench.gpu.report import code, markdown
from bench.gpu.rounds import RULE, SCORERS, seconds_of
from bench.gpu.timing import CudaTimer
from lvspec_kernels.tuning import TABLE
from tests.lvspec_kernels.tiny_ops import MODEL, tiny_arguments, tiny_shape

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
DRAFT = Model("tiny draft", layers=1, hidden=32, mlp=48, heads=2, kv_heads=1, head_dim=16, vocabulary=96)
by_name = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


class FakeCuda:
    """CUDA's events and graphs on a clock of ours. A flush takes a second, and what is timed says how long it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.captures, self.log = 0.0, False, []
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.now

            def elapsed_time(self, other: Any) -> float:
                return (other.at - self.at) * 1e3

        class Graph:
            def replay(self) -> None:
                cuda.spend(*self.work)

        @contextmanager
        def capture(graph: Graph) -> Iterator[None]:
            self.captured: list[tuple[str, float]] = []
            self.captures = True
            yield
            self.captures = False
            graph.work = ("replay", sum(seconds / 2 for _, seconds in self.captured))

        properties = SimpleNamespace(L2_cache_size=64, multi_processor_count=3, total_memory=1 << 20, name="GPU")
        for name, value in {
            "Event": Event, "CUDAGraph": Graph, "graph": capture, "synchronize": lambda: None,
            "get_device_properties": lambda _: properties,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        zero = torch.Tensor.zero_

        def flush(tensor: torch.Tensor) -> torch.Tensor:
            assert tensor.nbytes == 256
            self.spend("flush", 1.0)
            return zero(tensor)

        monkeypatch.setattr(torch.Tensor, "zero_", flush)

    def spend(self, what: str, seconds: float) -> None:
        if self.captures:
            self.captured.append((what, seconds))
            return
        self.log.append(what)
        self.now += seconds


def test_the_median_of_calls_with_an_empty_cache_is_what_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    timer = CudaTimer(CPU, seconds=0.5)
    assert timer.flushed == 4 * 64
    times = iter([9.0] * 6 + [0.01] * 11 + [0.02] * 9)  # warm-ups, then 0.5 s by 9 s: at least 20 calls
    assert timer.launched(lambda: cuda.spend("call", next(times))) == pytest.approx(0.01)
    assert cuda.log == ["call"] * 3 + ["flush", "call"] * 23
    cuda.log.clear()
    assert timer.launched(lambda: cuda.spend("call", 2.0**-7)) == pytest.approx(2.0**-7)
    assert cuda.log.count("flush") == 3 + 64  # so many in half a second
    cuda.log.clear()
    assert timer.launched(lambda: cuda.spend("call", 1e-7)) == pytest.approx(1e-7, rel=1e-3)
    assert cuda.log.count("flush") == 3 + 200


def test_a_graph_is_captured_once_after_warming_up_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert CudaTimer(CPU, seconds=0.5).replayed(lambda: cuda.spend("call", 0.04)) == pytest.approx(0.02)
    assert cuda.log[:3] == ["call"] * 3 and set(cuda.log[3:]) == {"replay", "flush"}
    assert cuda.captured == [("call", 0.04)]


class CountingTimer:
    """Calls once and says that a call takes a microsecond, with its launch two."""

    def __init__(self) -> None:
        self.calls = 0

    def launched(self, call: Any) -> float:
        self.calls += 1
        call()
        return 2e-6

    def replayed(self, call: Any) -> float:
        return self.launched(call) / 2


@pytest.fixture
def on_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels would be interpreted, which takes seconds a call; what they compute is tested elsewhere."""
    monkeypatch.setattr(Op, "kernel", property(lambda op: lambda **given: op.definition(**without(op, given))))


def without(op: Op, given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in op.grid}


def everything(deadline: float = math.inf) -> dict[str, Any]:
    pair, timer = (MODEL, DRAFT), CountingTimer()
    found = run.measure_all(timer, CPU, pair, (DRAFT, MODEL), (1, 2), (20, 70), 1e9, deadline, copied=1 << 16)
    gpu = {"name": "a GPU", "driver": "1"}
    return {"provenance": {"gpu": gpu}, **found}


def test_a_models_heads_are_those_of_its_config() -> None:
    for model in MODELS:
        assert model.heads % model.kv_heads == 0
        assert len(set(calibrated_heads(model))) == 4 and max(calibrated_heads(model)) < model.heads
        assert kv_heads_read(model) == 4
    assert calibrated_heads(QWEN_32B) == [0, 10, 20, 30]
    # 2 KV heads of 2 query heads each: all four heads, 2 KV heads.
    assert (calibrated_heads(MODEL), kv_heads_read(MODEL)) == ([0, 1, 2, 3], 2)


def test_shapes_are_repeated_only_where_the_cost_depends_on_them() -> None:
    def count(name: str) -> int:
        return len(set(op_of(name).shapes(MODELS, REQUESTS, SLOTS)))

    assert count("row_choice") == len(REQUESTS) * len(LOGITS)
    assert count("relax") == count("accept_chain") == len(REQUESTS)
    assert count("visual_mass") == count("visual_similarity") == len(MODELS) * len(REQUESTS) * len(SLOTS)
    assert count("context_scores") == len(MODELS) * len(SLOTS)
    assert count("select_context") == len(SLOTS)
    assert [shape.rows for shape in op_of("relax").shapes(MODELS, REQUESTS, SLOTS)] == [11, 44, 176, 704]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("row_choice", 2 * 11 * 96 * 4),
        ("accept_chain", 22 * (8 + 8 + 4 + 4) + 2 * 4),
        ("visual_mass", 2 * 121 * (2 * 16 * 4 + 4 + 1)),  # two KV heads, a slot and a flag
        ("mass_from_lse", 2 * 51 * 2 * 16 * 4 + 2 * 121 * 5),  # keys of 40 positions of text and 11 nodes
        ("visual_similarity", 2 * 70 * 48 * 4 + 2 * 121 * 5),
        ("context_scores", 121 * (2 * 16 * 4 + 8 + 4)),
        ("select_context", 70 * 5),
    ],
)
def test_the_bytes_that_must_move_are_those_counted_by_hand(name: str, expected: int) -> None:
    assert op_of(name).moves(tiny_shape(op_of(name))) == expected


@by_name
def test_no_op_moves_more_than_its_arguments_and_results_have(op: Op) -> None:
    """Keys and states of all slots are there; of a round's logits every one is read."""
    given = tiny_arguments(op, "cpu")
    returned = op.definition(**given)
    results = returned if isinstance(returned, tuple) else () if returned is None else (returned,)
    flat = [part for value in (*given.values(), *results) for part in (value if isinstance(value, tuple) else (value,))]
    held = sum(part.nbytes for part in flat if isinstance(part, torch.Tensor))
    assert 0 < op.moves(tiny_shape(op)) <= 1.2 * held


@by_name
def test_arguments_of_real_models_have_the_shapes_of_a_round(op: Op) -> None:
    shape = Shape(QWEN_7B, 1 if op.one_request else 2, 60)
    with torch.device("meta"):
        given = op.arguments(shape, torch.device("meta"))
    sizes = {name: tuple(value.shape) for name, value in given.items() if isinstance(value, torch.Tensor)}
    expected = {
        "logits": (22, 152_064), "draft_token": (2, WIDTH), "care": (2, WIDTH), "states": (22, 3584),
        "query": (32 if op.one_request else 22, 28, 128), "req_to_token": (2, 571), "score": (60,), "lse": (22, 28),
        "visual_state": (1143, 3584), "draft_slot": (1143,), "slots": (571,), "heads": (4,),
    }  # fmt: skip
    assert sizes.keys() & expected.keys()
    assert {name: size for name, size in sizes.items() if name in expected} == {
        name: expected[name] for name in sizes.keys() & expected.keys()
    }


@pytest.mark.usefixtures("on_definitions")
def test_everything_is_measured_and_becomes_a_table() -> None:
    result = everything()
    assert {found["op"] for found in result["ops"]} == {op.name for op in OPS}
    assert result["copy_bytes_a_second"] == 2 * (1 << 16) / 2e-6
    logits = next(found for found in result["ops"] if found["op"] == "row_choice" and found["rows"] == 22)
    assert (logits["bytes"], logits["seconds"], logits["launched_seconds"]) == (22 * 96 * 4, 1e-6, 2e-6)
    assert logits["bytes_a_second"] == pytest.approx(22 * 96 * 4 / 1e-6)
    assert logits["share_of_copy"] == pytest.approx(22 * 96 * 4 / 1e-6 / result["copy_bytes_a_second"])
    assert logits["definition_seconds"] == 2e-6
    json.dumps(result)
    table = markdown(result)
    assert "| row_choice |  | 22 |  | float32 | 0.01 | 1.0 | 2.0 | 8 | 13% | 2.0 |" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert widths == {12, 6 + len(SCORERS)}


@pytest.mark.usefixtures("on_definitions")
def test_a_round_is_products_cache_and_drafting_and_shares_are_of_it() -> None:
    result = everything()
    found = next(row for row in result["rounds"] if (row["requests"], row["visual_slots"]) == (2, 70))
    speed = result["copy_bytes_a_second"]
    context = 70 + 500 + WIDTH
    verify = 2 * 1e-6 + 1e-6 + 2 * (2 * context) * 2 * 2 * 16 * 2 / speed  # two layers, the head, keys and values
    draft = 11 * (1e-6 + 1e-6 + 2 * (context - 70 + 7) * 2 * 1 * 16 * 2 / speed)
    assert found["verify_ms"] == pytest.approx(verify * 1e3)
    assert found["draft_ms"] == pytest.approx(draft * 1e3)
    spent = 4e-6 + 2e-6  # four layers of visual_mass, then row_choice and relax
    name = "combined, attention, from keys"
    assert found["scoring_and_rule_ms"][name] == pytest.approx(spent * 1e3)
    assert found["share_of_round"][name] == pytest.approx(spent / (verify + draft + spent))
    assert f"{found['share_of_round'][name]:.2%} of a round" in markdown(result)


def test_seconds_of_a_round_are_those_of_its_own_shape() -> None:
    def found(op: str, seconds: float, dtype: str | None = None, **where: Any) -> dict[str, Any]:
        return {
            "op": op,
            "model": None,
            "requests": 2,
            "visual_slots": None,
            "dtype": dtype,
            "seconds": seconds,
            **where,
        }

    shape = Shape(MODEL, 2, 70)
    ops = [
        found("row_choice", 9.0, "bfloat16"),
        found("row_choice", 1.0, "float32"),
        found("relax", 7.0, requests=1),
        found("relax", 2.0),
        found("visual_mass", 70.0, "bfloat16", model="tiny", visual_slots=20),
        found("visual_mass", 3.0, "bfloat16", model="tiny", visual_slots=70),
    ]
    assert seconds_of({"visual_mass": 4} | RULE, shape, ops) == 4 * 3.0 + 1.0 + 2.0
    assert seconds_of({"visual_similarity": 1} | RULE, shape, ops) is None
    assert seconds_of(RULE, Shape(MODEL, 4, 70), ops) is None


@pytest.mark.usefixtures("on_definitions")
def test_what_a_round_needs_is_measured_before_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    of_target = [shape for op in OPS for shape in op.shapes((MODEL,), (1, 2), (20, 70))]
    found = everything(deadline=len(of_target) - 1)
    measured = [result for result in found["ops"] if "left_out" not in result]
    assert len(measured) == len(of_target) and {result["model"] for result in measured} == {None, "tiny"}
    assert all(share is not None for row in found["rounds"] for share in row["share_of_round"].values())
    assert [result["op"] for result in found["ops"]] == sorted(
        (result["op"] for result in found["ops"]), key=[op.name for op in OPS].index
    )


def test_a_machine_without_git_and_driver_tools_has_a_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.without_git("a module")["git"] == "git is not installed here"
    assert machine.driver() == "unknown: no nvidia-smi"


@pytest.mark.usefixtures("on_definitions")
def test_what_does_not_fit_is_left_out_and_says_so() -> None:
    late = everything(deadline=time.monotonic() - 1)
    assert {found["left_out"] for found in late["ops"]} == {"time"}
    assert all(share is None for row in late["rounds"] for share in row["share_of_round"].values())
    assert "left out: time" in markdown(late) and "not measured" in markdown(late)
    op = op_of("row_choice")
    shape = tiny_shape(op)
    assert measure.measure(op, shape, CountingTimer(), CPU, 1e9, op.moves(shape))["left_out"].startswith("moves 0 GB")
    small = measure.measure(op, shape, CountingTimer(), CPU, 1e9, 2 * op.moves(shape))
    assert small["definition_seconds"] is None and "left out" in markdown({**late, "ops": [small]})


def test_sizes_are_tried_in_all_combinations_and_the_fastest_becomes_code(monkeypatch: pytest.MonkeyPatch) -> None:
    op = op_of("draft_rows")
    shape = tiny_shape(op)
    seconds = {(64, 4): 3.0, (64, 8): 1.0, (128, 4): 2.0, (128, 8): 0.0}

    class Timer(CountingTimer):
        def replayed(self, call: Any) -> float:
            return call()

    def kernel(**given: Any) -> float:
        found = seconds[given["block"], given["num_warps"]]
        if not found:
            raise RuntimeError("too many resources requested for launch")
        return found

    monkeypatch.setattr(Op, "kernel", property(lambda _: kernel))
    monkeypatch.setitem(op.grid, "block", (64, 128))
    monkeypatch.setitem(op.grid, "num_warps", (4, 8))
    tuned = measure.tune(op, [shape, shape], Timer(), CPU)
    assert tuned["sizes"] == {"block": 64, "num_warps": 8}
    assert [found.get("seconds") for found in tuned["tried"]] == [[3.0] * 2, [1.0] * 2, [2.0] * 2, None]
    assert "too many resources" in tuned["tried"][3]["refused"]
    assert code("NVIDIA X", [tuned]) == '"draft_rows": {"NVIDIA X": {"block": 64, "num_warps": 8}},'


@by_name
def test_sizes_are_tried_on_shapes_of_a_round_and_the_tables_own_are_among_them(op: Op) -> None:
    shapes = run.shapes_to_tune(op)
    assert len(shapes) == len(set(shapes)) and all(shape.model is QWEN_32B for shape in shapes)
    if op.grid:
        assert all(size in op.grid[name] for name, size in TABLE[op.name][""].items())


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, on_definitions: None) -> None:
    """`run.main` with tiny models on CPU, which takes itself for a GPU."""
    timer = CountingTimer()
    timer.flushed = 256
    names = {
        "has_gpu": lambda: True, "CudaTimer": lambda *_: timer, "TARGET": MODEL, "DRAFT": DRAFT, "REQUESTS": (1, 2),
        "MODELS": (DRAFT, MODEL), "SLOTS": (20, 70), "copy_bandwidth": lambda *_: 1e9,
        "provenance": lambda module: {"module": module, "gpu": {"name": "NVIDIA X 80GB", "memory_bytes": 1 << 30}},
        "torch": SimpleNamespace(device=lambda *_: CPU, cuda=torch.cuda, bfloat16=torch.float32),
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_program_writes_numbers_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["run", "--out", str(out), "--minutes", "9"])
    run.main()
    written = json.loads(out.read_text())
    assert written["provenance"]["module"] == "bench.gpu.run" and written["flushed_bytes"] == 256
    assert not [found for found in written["ops"] if "left_out" in found] and len(written["rounds"]) == 4
    assert out.with_suffix(".md").read_text() == markdown(written)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_tuning_writes_what_it_tried_and_prints_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path / "gpu.json"), "--tune"])
    run.main()
    written = json.loads((tmp_path / "gpu-tuning-nvidia-x-80gb.json").read_text())
    assert {found["op"] for found in written["ops"]} == {op.name for op in OPS if op.grid}
    said = capsys.readouterr().out
    for found in written["ops"]:
        assert code("NVIDIA X 80GB", [found]) in said
        assert len(found["tried"]) == math.prod(len(values) for values in op_of(found["op"]).grid.values())
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "line"),
    [("run", ["--out", "none.json"], "gpu-bench: skipped: no GPU"), ("kernel_tests", [], "gpu-test: skipped: no GPU")],
)
def test_without_a_gpu_it_says_so_and_ends_well(module: str, arguments: list[str], line: str, tmp_path: Path) -> None:
    """In a process that finds torch, Triton and nothing of SGLang."""
    program = "import sys; sys.modules.update(dict.fromkeys(['sglang', 'sgl_lvspec', 'transformers', 'tqdm']))\n"
    program += f"import runpy; sys.argv[1:] = {arguments}; runpy.run_module('bench.gpu.{module}', run_name='__main__')"
    environment = {"PYTHONPATH": str(ROOT / "triton_kernels"), "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.stdout.strip(), result.returncode) == (line, 0), result.stderr
    assert not (tmp_path / "none.json").exists()


def test_kernel_tests_run_compiled_in_this_interpreter_file_by_file() -> None:
    commands = kernel_tests.commands(["-k", "relax"])
    files = {path.name for path in (ROOT / "tests/lvspec_kernels").glob("test_*.py")}
    assert {Path(command[8]).name for command in commands} == files
    assert all(command[0] == sys.executable and command[-2:] == ["-k", "relax"] for command in commands)
    environment = kernel_tests.environment({"TRITON_INTERPRET": "1", "PYTHONPATH": "mine"})
    assert environment["TRITON_INTERPRET"] == "0"
    assert environment["PYTHONPATH"].split(":") == [str(ROOT / "triton_kernels"), str(ROOT), "mine"]


def test_one_failing_file_fails_them_all_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, empty = ([sys.executable, "-c", f"print('hello'); raise SystemExit({code})"] for code in (0, 3, 5))
    assert kernel_tests.run_all([good, bad, empty], {}, 2) == 3
    assert capsys.readouterr().out.endswith("gpu-test: 1 of 3 files failed\n")
    assert kernel_tests.run_all([good, empty], {}, 2) == 0
    said = capsys.readouterr().out
    assert said.count("\nhello\n") == 2 and said.endswith("gpu-test: all passed\n")
