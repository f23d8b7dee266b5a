"""A conversation about one video: it is read once, later turns find it in the server's cache.

    python examples/multi_turn.py --video demo/clips/bounce.mp4

Prints each answer with how many of its prompt's tokens were cached:

    > What color is the background?
    It is a olive background.
      105 of 120 prompt tokens cached
"""

import argparse
import os
import sys

import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, video

QUESTIONS = ("How many objects are there?", "What color is the background?", "What happens first?")


@sgl.function
def converse(s, clip, questions):
    for number, question in enumerate(questions):
        s += sgl.user(video(clip) + question if number == 0 else question)
        s += sgl.assistant(sgl.gen(f"answer{number}", max_tokens=64, temperature=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key", default=os.environ.get("LVSPEC_API_KEY"), help="or in LVSPEC_API_KEY")
    parser.add_argument("--video", default="demo/clips/bounce.mp4")
    options = parser.parse_args()
    state = converse.run(options.video, QUESTIONS, backend=VideoEndpoint(options.url, options.api_key))
    if state.error():
        sys.exit(str(state.error()))
    for number, question in enumerate(QUESTIONS):
        name = f"answer{number}"
        meta = state.get_meta_info(name)
        print(f"> {question}\n{state[name]}")
        print(f"  {meta['cached_tokens']} of {meta['prompt_tokens']} prompt tokens cached\n")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
