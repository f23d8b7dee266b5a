"""`lvspec`: the plugin's own command, for what is done beside a server (console script of pyproject.toml)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sgl_lvspec import SGLANG_TESTED, __version__
from sgl_lvspec.calibrate import command as calibrate_command
from sgl_lvspec.explain import command as explain_command
from sgl_lvspec.play import command as play_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="lvspec", description="Speculative decoding for video LLMs in SGLang.")
    parser.add_argument("--version", action="version", version=f"sgl-lvspec {__version__} (for sglang {SGLANG_TESTED})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help="check versions, device, plugin, seams and models in one screen",
        description="Checks what LVSPEC needs, without starting a server. Exit code 0: ready, 1: something to mend.",
    )
    doctor.add_argument("--model-path", metavar="TARGET", help="the target, as for the server")
    doctor.add_argument(
        "--speculative-draft-model-path", "--speculative-draft-model", dest="draft", metavar="DRAFT",
        help="the draft, as for the server",
    )  # fmt: skip
    doctor.add_argument("--trust-remote-code", action="store_true", help="as for the server")
    doctor.add_argument("--lvspec-calibration", metavar="FILE", help="the calibration file, as for the server")
    calibration = commands.add_parser(
        "calibrate",
        help="measure a pair of models on clips, for loose verification",
        description="Finds out, without labels, which attention heads tell that a token depends on the video, and "
        "writes what the server needs to know. Starts the pair once; flags of SGLang follow after --.",
    )
    calibrate_command.add_arguments(calibration)
    explanation = commands.add_parser(
        "explain",
        help="ask a running server about a clip and show what was loosened in the answer",
        description="Asks a running LVSPEC server about a video or image. Shows the answer as it comes, a table of the "
        "loosened tokens with the target's own choice beside each, and the strict answer with the differences marked.",
    )
    explain_command.add_arguments(explanation)
    page = commands.add_parser(
        "play",
        help="serve a page beside a running server where one sees what was loosened",
        description="Serves a page on this machine: pick or upload a clip, ask about it, and see each token of the "
        "answer in its kind, what the target would have said instead, and the strict answer beside the loose one.",
    )
    play_command.add_arguments(page)
    options = parser.parse_args(argv)
    if options.command == "calibrate":
        return calibrate_command.run(options)
    if options.command == "explain":
        return explain_command.run(options)
    if options.command == "play":
        return play_command.run(options)

    from sgl_lvspec.doctor import ModelPaths, examine, render

    paths = ModelPaths(options.model_path, options.draft, options.trust_remote_code, options.lvspec_calibration)
    findings = examine(paths)
    print(render(findings))
    return 1 if any(finding.remedy for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
