"""Starts SGLang with the demo pair on loopback, says when it is ready, and ends it cleanly: `make serve`.

It runs the ordinary `python -m sglang.launch_server` as a child; nothing of SGLang is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.metadata
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

from demo.user_error import UserError

HOST = "127.0.0.1"
DEMO_MODEL = "demo-pair"  # the name that clients of the demo pair may use
DEMO_TARGET = "demo/pair/target"
KEY_FLAGS = ("--api-key", "--admin-api-key")
STOP_LIMIT_S = 20
POLL_S = 2  # a question in the log every other second is enough
SIGN_OF_LIFE_S = 30

# Why each, on a machine without a GPU: SGLang would size its KV pool by all of the memory; its idle scheduler would
# keep a core busy; 16,384 tokens are four requests of the demo pair's full length.
CPU_FLAGS = ("--device", "cpu", "--max-total-tokens", "16384", "--mem-fraction-static", "0.3", "--sleep-on-idle")

BANNER = """
{line}
  {what} is ready at {url} after {seconds:.0f} s

  Ask about a clip (the second question finds the video in the cache):
    make ask {port}VIDEO={clip} Q="What happens in this clip? | What color is the background?"

  Plain HTTP:
    curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d \\
      '{{"model": "{model}", "max_tokens": 64, "messages": [{{"role": "user", "content": "Hello, who are you?"}}]}}'

  OpenAI client:
    from openai import OpenAI
    client = OpenAI(base_url="{url}/v1", api_key="none")
    messages = [{{"role": "user", "content": "Hello, who are you?"}}]
    print(client.chat.completions.create(model="{model}", messages=messages).choices[0].message.content)

  Stop: Ctrl-C
{line}
"""


def is_cpu_environment() -> bool:
    """Whether setup installed the CPU engine here, which it does where there is no NVIDIA driver."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("sgl-lvspec-cpu-engine")
        return True
    return False


def check_model(path: str, variable: str) -> None:
    """Refuse a model folder that is not there; `owner/name` is left to SGLang, which downloads it."""
    is_folder_name = path.startswith((".", "/", "~", "demo/")) or Path(path).exists()
    if is_folder_name and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"a model folder with a config.json at {path}",
            "none" if not Path(path).exists() else "a folder or file without one",
            f"name another one (make serve {variable}=folder), or make the demo pair with make demo-pair",
        )


def check_port(port: int) -> None:
    """Refuse a port that something listens on, before a model is loaded for nothing."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: TIME_WAIT does not count
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"a free TCP port {port} on {HOST}",
                str(error),
                f"stop what uses it, or choose another: make serve PORT={min(port + 1, 65535)}",
            ) from error


def command_for(options: argparse.Namespace, is_cpu: bool) -> list[str]:
    """The command line of `sglang.launch_server`; what the user adds comes last and wins."""
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", options.target]
    if options.spec == "lvspec":
        command += ["--speculative-algorithm", "LVSPEC", "--speculative-draft-model-path", options.draft]
    else:  # both arms see the same frame times and, on CPU, run the same attention code
        command += ["--lvspec-video-time", "fixed", *(["--attention-backend", "lvspec_cpu"] if is_cpu else [])]
    if options.target == DEMO_TARGET:
        command += ["--served-model-name", DEMO_MODEL]
    # float32 on CPU: the fastest there without AMX, and token ids can be compared; FlashInfer has no float32.
    command += ["--dtype", options.dtype or ("float32" if is_cpu else "bfloat16")]
    command += ["--host", HOST, "--port", str(options.port), "--enable-cache-report", "--enable-metrics"]
    return [*command, *(CPU_FLAGS if is_cpu else ()), *options.more]


def without_keys(command: list[str]) -> list[str]:
    """The command as it is shown: an API key is for the server alone."""
    shown: list[str] = []
    for word in command:
        if shown and shown[-1] in KEY_FLAGS:
            shown.append("...")
        elif word.partition("=")[0] in KEY_FLAGS and "=" in word:
            shown.append(word.partition("=")[0] + "=...")
        else:
            shown.append(word)
    return shown


def environment_for(options: argparse.Namespace, is_cpu: bool) -> dict[str, str]:
    """The child's environment; what the user has set stays."""
    defaults = {}
    if is_cpu:
        defaults["SGLANG_USE_CPU_ENGINE"] = "1"
    if is_cpu and options.target == DEMO_TARGET:
        defaults["OMP_NUM_THREADS"] = "1"  # the demo pair's matrices are too small to share among threads
    if all(Path(path).is_dir() for path in (options.target, options.draft)):
        defaults["HF_HUB_OFFLINE"] = "1"  # both models are here, so nothing is looked up
    return {**defaults, **os.environ}


def is_healthy(url: str) -> bool:
    """Whether the server answers; `/health` makes it generate one token."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url + "/health", timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end what is left of the session that it was started in."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # start_new_session made the child's pid the group's id
    process.wait()


class StopRequested(BaseException):
    """Ctrl-C or SIGTERM reached us."""


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Signal handler: leave the waiting, wherever it is."""
    raise StopRequested


def run(options: argparse.Namespace) -> int:
    """Start the server, wait with it, end it.

    Returns:
        0 after Ctrl-C or SIGTERM, else the server's own exit status.
    """
    is_cpu = is_cpu_environment()
    for path, variable in ((options.target, "TARGET"), (options.draft, "DRAFT")):
        if variable == "TARGET" or options.spec == "lvspec":
            check_model(path, variable)
    check_port(options.port)
    command = command_for(options, is_cpu)
    print("$ " + shlex.join(["python", *without_keys(command[1:])]), flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment_for(options, is_cpu), start_new_session=True)
    try:
        is_ready = wait_until_ready(process, options, start)
        status = process.wait()
    except StopRequested:
        print("\nending the server ...", flush=True)
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # one Ctrl-C may arrive twice; the ending itself is bounded in time
        end(process)
    when = "" if is_ready else " before it was ready"
    print(f"the server ended by itself with status {status}{when}; its log above says why", file=sys.stderr)
    if not is_ready:
        print("do this   look for the last error above; make doctor checks the installation", file=sys.stderr)
    return status if status > 0 else 1


def wait_until_ready(process: subprocess.Popen[bytes], options: argparse.Namespace, start: float) -> bool:
    """Wait for the server's first answer and print the banner; False when it ended before."""
    url = f"http://{HOST}:{options.port}"
    last = start
    while process.poll() is None:
        if is_healthy(url):
            print(banner(options, url, time.monotonic() - start), flush=True)
            return True
        if time.monotonic() - last > SIGN_OF_LIFE_S:
            last = time.monotonic()
            print(f"still starting ({last - start:.0f} s)", flush=True)
        time.sleep(POLL_S)
    return False


def banner(options: argparse.Namespace, url: str, seconds: float) -> str:
    """What a person can do with the server now."""
    clips = sorted(Path("demo/clips").glob("*.mp4"))
    return BANNER.format(
        line="-" * 100,
        what="LVSPEC" if options.spec == "lvspec" else "SGLang without speculation",
        url=url,
        seconds=seconds,
        port="" if options.port == 30000 else f"PORT={options.port} ",
        clip=clips[0] if clips else "clip.mp4",
        model=DEMO_MODEL if options.target == DEMO_TARGET else options.target,
    )


def main() -> int:
    """Command line; what follows `--` goes to SGLang."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default=DEMO_TARGET, help="model that answers")
    parser.add_argument("--draft", default="demo/pair/draft", help="small model that drafts")
    parser.add_argument("--spec", choices=("lvspec", "none"), default="lvspec", help="none: the target alone")
    parser.add_argument("--port", type=int, default=30000, help="TCP port on loopback")
    parser.add_argument("--dtype", help="of weights and computation (default: float32 on CPU, bfloat16 on CUDA)")
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="more flags for sglang.launch_server")
    try:
        return run(parser.parse_args())
    except UserError as error:
        print(f"the server was not started\n{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
