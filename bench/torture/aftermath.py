"""What is left when a wave of the storm is over: pools, processes, memory, log, and are the next answers right?"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from bench.torture import plugin
from bench.torture.client import LIMIT_S
from bench.torture.oracle import Oracle
from bench.torture.question import GENERATE, Question
from bench.torture.switchboard import Switchboard

IDLE_LIMIT_S = 120.0
TIDY_LIMIT_S = 30.0
IDLE_METRICS_S = 32.0
HELD = ("sglang:num_used_tokens", "lvspec:draft_held")
# What no line of a log may say.
_ALARM = re.compile(
    r"leak|Traceback|do not add up|AssertionError|watchdog|names a slot twice|held.*freed", re.IGNORECASE
)
_QUIET = re.compile(r"watchdog_timeout|server_args=|soft_watchdog")  # settings that a log repeats
EVICTED, RETRACTED = "sglang:evicted_tokens_total", "sglang:num_retracted_requests_total"


@dataclass
class Server:
    """A server under the storm.

    Attributes:
        folder: of its switchboard and of the lines that are written inside.
        fresh: what the probes needed when it was new: rounds and accepted drafts.
    """

    url: str
    log: Path
    folder: Path
    probes: Sequence[Question] = field(repr=False)
    oracle: Oracle = field(repr=False)
    processes: dict[int, str] = field(default_factory=dict)
    fresh: list[tuple[int, int]] = field(default_factory=list)
    waves: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.board = Switchboard(plugin.board_of(self.folder))
        self.processes = _processes_at(self.url)
        self._told, self._read = 0, self.log.stat().st_size
        self.fresh = self._probe("when new")

    @property
    def is_alive(self) -> bool:
        """Whether all of its processes run."""
        try:
            return all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in self.processes)
        except psutil.NoSuchProcess:
            return False

    def last_words(self) -> str:
        """The errors that the log names last."""
        lines = self.log.read_text(errors="replace").splitlines()
        return " | ".join([line.strip()[:200] for line in lines if re.match(r"\w*(Error|Exception): ", line)][-3:])

    def metrics(self) -> dict[str, float]:
        """Sums over labels, by name."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(requests.get(f"{self.url}/metrics", timeout=60).text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def calm(self, name: str) -> None:
        """Check everything, with nobody asking; what is wrong goes to `wrong`, what was measured to `waves`."""
        before = self.metrics()
        self._flush(name)
        left = self._left()
        self.wrong += [
            f"{name}: {metric} must be 0 after a flush; found {count:g}" for metric, count in left.items() if count
        ]
        if (found := self._probe(name)) != self.fresh:
            self.wrong.append(f"{name}: the draft must be as good as when new, {self.fresh}; found {found}")
        self._flush(name)
        memory = self._tidy(name)
        self._check_processes(name)
        self._read_log(name)
        self._read_inside(name)
        held = {metric: before[metric] for metric in HELD}
        self.waves.append({"wave": name, "held_before_flush": held, "resident_bytes": memory, "probes": found})

    def _flush(self, name: str) -> None:
        deadline = time.monotonic() + IDLE_LIMIT_S
        while requests.post(f"{self.url}/flush_cache", timeout=LIMIT_S).status_code != 200:
            if time.monotonic() > deadline:
                self.wrong.append(f"{name}: the server must fall idle; it did not in {IDLE_LIMIT_S:g} s")
                return
            time.sleep(0.3)

    def _left(self) -> dict[str, float]:
        """What the pools hold by the server's metrics, once these are of the idle server."""
        # SGLang renews its gauges every 30 s of idleness, by a clock that we can move on.
        self.board.write("forward_s", self.board.read("forward_s") + IDLE_METRICS_S)
        deadline = time.monotonic() + IDLE_METRICS_S
        while True:
            time.sleep(1)
            found = self.metrics()
            left = {metric: found[metric] for metric in HELD}
            if not any(left.values()) or time.monotonic() > deadline:
                return left

    def _probe(self, name: str) -> list[tuple[int, int]]:
        """Ask what is asked after every wave, from an empty cache; rounds and accepted drafts of each."""
        self._flush(name)
        found = []
        for question in self.probes:
            body = {
                **question.body,
                "sampling_params": {**question.sampling, "custom_params": {"lvspec": {"mode": "strict"}}},
            }
            before = self._read_by_draft()
            response = requests.post(self.url + GENERATE, json=body, timeout=LIMIT_S)
            if response.status_code != 200:
                self.wrong.append(f"{name}: {question.name} must be answered; found {response.text[:300]}")
                continue
            answer, (expected, *_) = response.json(), self.oracle.answers(question)
            if answer["output_ids"] != expected.ids:
                self.wrong.append(f"{name}: the next answer is {answer['output_ids']} for {expected.ids}")
            meta, read = answer["meta_info"], self._read_by_draft() - before
            if not meta["num_retractions"] and read != meta["prompt_tokens"] - meta["cached_tokens"]:
                self.wrong.append(
                    f"{name}: of a prompt of {meta['prompt_tokens']} tokens, {meta['cached_tokens']} of them cached, "
                    f"the draft read or left out {read:g}"
                )
            found.append((meta["spec_verify_ct"], meta["spec_num_correct_drafts"]))
        return found

    def _read_by_draft(self) -> float:
        """Tokens of prompts that the draft has read so far, or left out on purpose."""
        metrics = self.metrics()
        return sum(metrics.get(f"lvspec:draft_{name}_total", 0.0) for name in ("read_text", "read_visual", "left_out"))

    def _tidy(self, name: str) -> dict[str, int]:
        """Resident bytes of every process that has given back what it can; the scheduler tells its pools, too."""
        self._told += 1
        self.board.write("tidy", self._told)
        deadline, lines = time.monotonic() + TIDY_LIMIT_S, list[dict[str, Any]]()
        told = {line["pid"] for line in plugin.read(self.folder, "loaded")} & self.processes.keys()
        while {line["pid"] for line in lines} < told and time.monotonic() < deadline:
            time.sleep(0.3)
            lines = [line for line in plugin.read(self.folder, "tidy") if line["number"] == self._told]
        for line in lines:
            for pool in ("target", "draft", "rows"):
                if f"{pool}_size" in line and line[f"{pool}_free"] != line[f"{pool}_size"]:
                    self.wrong.append(f"{name}: {line[f'{pool}_free']} of {line[f'{pool}_size']} {pool} slots are free")
        return {f"{self.processes.get(line['pid'], '?')} {line['pid']}": line["resident"] for line in lines}

    def _check_processes(self, name: str) -> None:
        for pid, title in self.processes.items():
            if not psutil.pid_exists(pid):
                self.wrong.append(f"{name}: the process {title} ({pid}) is gone")
        if more := _processes_at(self.url).keys() - self.processes.keys():
            self.wrong.append(f"{name}: new processes {sorted(more)}")

    def _read_log(self, name: str) -> None:
        with self.log.open(errors="replace") as log:
            log.seek(self._read)
            lines = log.readlines()
            self._read = log.tell()
        alarms = [line.strip()[:300] for line in lines if _ALARM.search(line) and not _QUIET.search(line)]
        if alarms:
            self.wrong.append(f"{name}: the log says {len(alarms)} times: {alarms[:3]}")

    def _read_inside(self, name: str) -> None:
        found = [line["found"] for line in plugin.read(self.folder, "wrong")]
        if found:
            self.wrong.append(f"{name}: inside the scheduler, {len(found)} times so far: {found[:3]}")


def warmed_up(waves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The wave in the middle, from which growth is counted: what leaks goes on leaking in the second half, while the
    caches and the heaps of SGLang's loader threads fill up in the first (bench/README.md)."""
    return waves[(len(waves) - 1) // 2]


def growth(waves: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By process: resident memory after the last wave by that after the one in the middle, less 1."""
    first, last = warmed_up(waves)["resident_bytes"], waves[-1]["resident_bytes"]
    return {process: last[process] / first[process] - 1.0 for process in first if process in last}


def _processes_at(url: str) -> dict[int, str]:
    """The process that listens at the URL and its children, by id, with their titles."""
    port = urlsplit(url).port
    (pid, *_) = (
        connection.pid for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    )  # fmt: skip
    server = psutil.Process(pid)
    return {server.pid: "main", **{each.pid: _title(each) for each in server.children(recursive=True)}}


def _title(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    return next((word for word in ("scheduler", "detokenizer", "resource_tracker") if word in words), process.name())
