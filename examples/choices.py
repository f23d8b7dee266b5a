"""A multiple-choice question about a video: the choices are scored, nothing is written.

    python examples/choices.py --video demo/clips/bounce.mp4

Prints each choice's mean log-probability a token. Scores are the target's own, whatever may be loosened elsewhere.

       -6.01  gray
       -0.14  olive
      -10.78  white
      -12.03  blue
    chosen: olive
"""

import argparse
import os
import sys

import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, video

COLORS = [" gray", " olive", " white", " blue"]


@sgl.function
def background(s, clip):
    s += sgl.user(video(clip) + "What color is the background?")
    s += sgl.assistant("The background is" + sgl.select("color", choices=COLORS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key", default=os.environ.get("LVSPEC_API_KEY"), help="or in LVSPEC_API_KEY")
    parser.add_argument("--video", default="demo/clips/bounce.mp4")
    options = parser.parse_args()
    state = background.run(options.video, backend=VideoEndpoint(options.url, options.api_key))
    if state.error():
        sys.exit(str(state.error()))
    for color, score in zip(COLORS, state.get_meta_info("color")["normalized_prompt_logprobs"], strict=True):
        print(f"{score:8.2f} {color}")
    print(f"chosen:{state['color']}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
