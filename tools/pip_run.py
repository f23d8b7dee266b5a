"""One run of pip for `tools.environment`: its lines thinned out for a person, its failure put into words."""

from __future__ import annotations

import platform
import queue
import re
import subprocess
import threading
import time
from pathlib import Path

LINE_EVERY_S = 5
SIGN_OF_LIFE_S = 15


class SetupError(Exception):
    """Setup cannot go on: what is required, what was found, what to do."""

    def __init__(self, required: str, found: str, do: str) -> None:
        super().__init__(f"required  {required}\nfound     {found}\ndo this   {do}")


class Progress:
    """Lines with the elapsed time; what pip says is thinned out to one line every few seconds."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since setup began."""
        return time.monotonic() - self.start

    def say(self, text: str) -> None:
        """Print one line at once."""
        self.last = time.monotonic()
        print(f"[{self.elapsed_s:4.0f} s] {text}", flush=True)

    def hear(self, line: str) -> None:
        """Take one line of pip's and print it, shortened, if it tells a person something."""
        word, _, rest = line.strip().partition(" ")
        if line.startswith("Installing collected packages"):
            count = line.count(",") + 1
            self.say(f"  installing {count} package{'s' if count > 1 else ''}")
        elif word in ("Downloading", "Collecting", "Processing") and time.monotonic() - self.last > LINE_EVERY_S:
            subject = rest.split(" (from ")[0].split("/")[-1]
            if ".whl" in subject:
                subject = " ".join(subject.split("-")[:2])  # name-version-tags.whl
            self.say(f"  {word.lower()} {subject}")


def follow(command: list[str], folder: Path, progress: Progress) -> tuple[str, int]:
    """Run `command`, pass its lines to `progress`, and give a sign of life while it is silent.

    Returns:
        Everything it printed, and its exit status.
    """
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: queue.Queue[str | None] = queue.Queue()
    stream = process.stdout
    assert stream is not None, "stdout was asked for as a pipe"

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    heard: list[str] = []
    while True:
        try:
            line = lines.get(timeout=SIGN_OF_LIFE_S)
        except queue.Empty:
            progress.say("  still at it")
            continue
        if line is None:
            return "".join(heard), process.wait()
        heard.append(line)
        progress.hear(line)


def explain(step: str, output: str, log: Path) -> SetupError:
    """Turn pip's output into an error that says what failed and what to do."""
    again = "then run make setup again; the whole log is in " + str(log)
    if "No space left on device" in output:
        return SetupError("disk space to install " + step, "No space left on device", "free some, " + again)
    network = re.search(
        r"Temporary failure in name resolution|Name or service not known|Network is unreachable|NewConnectionError|"
        r"ConnectTimeoutError|Read timed out|Connection refused|ProxyError|CERTIFICATE_VERIFY_FAILED",
        output,
    )
    missing = re.search(r"No matching distribution found for (.+)", output)
    if network:
        return SetupError(
            f"a network connection to the package index, for {step}",
            network.group() + (f" (at {missing.group(1)})" if missing else ""),
            "check the connection, the proxy or PIP_INDEX_URL, " + again,
        )
    if missing:
        return SetupError(
            f"the package {missing.group(1)} for Python {platform.python_version()} on {platform.machine()}",
            "the package index has none",
            "try another Python (make setup PYTHON=python3.11) or another index (PIP_EXTRA_INDEX_URL), " + again,
        )
    errors = [line for line in output.splitlines() if line.lstrip().lower().startswith("error")]
    last = errors[-1:] or output.strip().splitlines()[-1:] or ["pip failed without a word"]
    return SetupError(f"pip to install {step}", last[0].strip(), "look at what it says, " + again)
