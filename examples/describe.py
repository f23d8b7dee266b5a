"""One question about a video, as a front-end program, with what LVSPEC says of the answer.

    python examples/describe.py --video demo/clips/two-events.mp4

Prints the answer as it is streamed, with mode, T and the share of loosened tokens; then the same asked strictly:

    We can observe three objects on a gray background. First, there is a small flat red circle that remains still. ...
      loose: 21 rounds, T = 3.33, loosened 11.0%
"""

import argparse
import os
import sys

import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, video


@sgl.function
def describe(s, clip):
    s += sgl.user(clip + "Describe the video in detail.")
    s += sgl.assistant(sgl.gen("answer", max_tokens=128, temperature=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key", default=os.environ.get("LVSPEC_API_KEY"), help="or in LVSPEC_API_KEY")
    parser.add_argument("--video", default="demo/clips/two-events.mp4")
    options = parser.parse_args()
    server = VideoEndpoint(options.url, options.api_key)
    # Made here: a streamed program runs in a thread, where nobody is told of a missing file.
    clip = video(options.video)

    for mode in ("loose", "strict"):  # a server with the preset strict refuses the loose one
        state = describe.run(clip, backend=server.asking(mode=mode), stream=True)
        for piece in state.text_iter("answer"):
            print(piece, end="", flush=True)
        if state.error():
            sys.exit(f"{mode}: {state.error()}")
        told = state.get_meta_info("answer")["lvspec"]
        drafts, loosened = told["T"] or 0, told["divergence"] or 0  # null without a round, without a token
        print(f"\n  {told['mode']}: {told['rounds']} rounds, T = {drafts:.2f}, loosened {loosened:.1%}\n")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
