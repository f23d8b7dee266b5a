"""Results as Markdown, and sizes as code for `lvspec_kernels/tuning.py`."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]


def markdown(results: Result) -> str:
    """What a result file says, as tables."""
    gpu = results["provenance"]["gpu"]
    lines = [
        f"# Kernels on {gpu['name']}",
        "",
        f"A copy moves {results['copy_bytes_a_second'] / 1e9:,.0f} GB/s (read and written bytes),",
        f"an empty launch takes {results['empty_launch_seconds'] * 1e6:.1f} µs.",
        "Times are medians with an empty L2 cache: `graph` without the host, `launched` with it.",
        "`of copy`: the bytes that must move over that time, by the speed of the copy.",
        "",
        "| op | model | rows | visual slots | dtype | MB | graph, µs | launched, µs | GB/s | of copy | torch, µs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(op_line(result) for result in results["ops"]),
    ]
    if results["rounds"]:
        scorers = list(results["rounds"][0]["share_of_round"])
        lines += [
            "",
            "## Scoring and rule in a round",
            "",
            "Verify forward and drafting are what must be: matrix products measured, the KV cache at the speed of the",
            "copy. So the shares are upper bounds.",
            "",
            f"| target, draft | requests | visual slots | verify, ms | drafting, ms | {' | '.join(scorers)} |",
            "|---|---|---|---|---|" + "---|" * len(scorers),
            *(round_line(result) for result in results["rounds"]),
        ]
    return "\n".join(lines) + "\n"


def op_line(result: Result) -> str:
    name = " | ".join(
        "" if result[key] is None else f"{result[key]:,}" if isinstance(result[key], int) else str(result[key])
        for key in ("op", "model", "rows", "visual_slots", "dtype")
    )
    if "left_out" in result:
        return f"| {name} | left out: {result['left_out']} | | | | | |"
    return (
        f"| {name} | {result['bytes'] / 1e6:,.2f} | {microseconds(result['seconds'])} "
        f"| {microseconds(result['launched_seconds'])} | {result['bytes_a_second'] / 1e9:,.0f} "
        f"| {result['share_of_copy']:.0%} | {microseconds(result['definition_seconds'])} |"
    )


def microseconds(seconds: float | None) -> str:
    return "left out" if seconds is None else f"{seconds * 1e6:,.1f}"


def round_line(result: Result) -> str:
    shares = (
        "not measured" if share is None else f"{share:.2%} of a round ({result['scoring_and_rule_ms'][scorer]:.3f} ms)"
        for scorer, share in result["share_of_round"].items()
    )
    return (
        f"| {result['target']}, {result['draft']} | {result['requests']} | {result['visual_slots']:,} "
        f"| {result['verify_ms']:.2f} | {result['draft_ms']:.2f} | {' | '.join(shares)} |"
    )


def code(gpu: str, tuned: list[Result]) -> str:
    """Lines to paste into `TABLE`, one an op."""
    return "\n".join(f'"{result["op"]}": {{"{gpu}": {result["sizes"]}}},'.replace("'", '"') for result in tuned)
