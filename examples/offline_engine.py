"""No server: `sglang.Engine` with LVSPEC in this program, for offline work over many clips.

    python examples/offline_engine.py --clips demo/clips/bounce.mp4 demo/clips/passing.mp4

`make_server_args` takes SGLang's own names and LVSPEC's settings as `lvspec_NAME`. On a machine without a GPU the
defaults below serve the demo pair on a CPU; with one, add `--device cuda`. Prints each answer and what was loosened:

    > demo/clips/bounce.mp4
    The video shows two figures over a olive surface. The first is a small plain green triangle, and it glides ...
      loose: 8 rounds, T = 7.62, loosened 11.6%
"""

import argparse
import base64
import os
import sys
from pathlib import Path

PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Describe the video in detail.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# As `make serve` on a CPU: a small KV pool; float32, in which strict answers are the target's to the last token.
CPU = {"device": "cpu", "dtype": "float32", "max_total_tokens": 16384, "mem_fraction_static": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="demo/pair/target")
    parser.add_argument("--draft", default="demo/pair/draft")
    parser.add_argument("--preset", help="default: balanced for a calibrated pair (the demo pair is), else strict")
    parser.add_argument("--clips", nargs="+", default=["demo/clips/bounce.mp4", "demo/clips/passing.mp4"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    videos = [f"data:video/mp4;base64,{base64.b64encode(Path(clip).read_bytes()).decode()}" for clip in options.clips]
    if options.device == "cpu":
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")  # before SGLang is imported
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the demo pair is too small to share among threads

    import sglang

    from sgl_lvspec.flags import make_server_args

    server_args = make_server_args(
        model_path=options.target,
        speculative_algorithm="LVSPEC",
        speculative_draft_model_path=options.draft,
        lvspec_preset=options.preset,
        **(CPU if options.device == "cpu" else {}),
    )
    engine = sglang.Engine(server_args=server_args)
    try:
        answers = engine.generate(
            prompt=[PROMPT] * len(videos),
            video_data=[[video] for video in videos],
            sampling_params={"temperature": 0, "max_new_tokens": 128},
        )
    finally:
        engine.shutdown()
    for clip, answer in zip(options.clips, answers, strict=True):
        told = answer["meta_info"]["lvspec"]
        print(f"> {clip}\n{answer['text']}")
        drafts, loosened = told["T"] or 0, told["divergence"] or 0  # null without a round, without a token
        print(f"  {told['mode']}: {told['rounds']} rounds, T = {drafts:.2f}, loosened {loosened:.1%}\n")


if __name__ == "__main__":  # SGLang starts processes that import this file
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(str(error))
