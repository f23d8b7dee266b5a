"""Several questions about one video at once: the program forks behind the video, and the forks share it.

    python examples/fork.py --video demo/clips/two-events.mp4

The server reads the video once (the fork commits it to the radix cache) and answers all questions in one batch. Prints
each answer with how many of its prompt's tokens were cached: all but the question, for the first, too.

    > How many objects are there?
    We see three figures: a red circle, a green ring and a blue bar.
      80 of 91 prompt tokens cached
"""

import argparse
import os
import sys

import sglang as sgl

from sgl_lvspec.frontend import VideoEndpoint, video

QUESTIONS = ("How many objects are there?", "What color is the background?", "What happens first?")


@sgl.function
def ask_all(s, clip, questions):
    s += sgl.user_begin()
    s += video(clip)
    s.sync()  # SGLang 0.5.23 caches what forks share only if it has begun to write it
    forks = s.fork(len(questions))
    for fork, question in zip(forks, questions, strict=True):
        fork += question
        fork += sgl.user_end()
        fork += sgl.assistant(sgl.gen("answer", max_tokens=64, temperature=0))
    forks.join()
    return [(fork["answer"], fork.get_meta_info("answer")) for fork in forks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key", default=os.environ.get("LVSPEC_API_KEY"), help="or in LVSPEC_API_KEY")
    parser.add_argument("--video", default="demo/clips/two-events.mp4")
    options = parser.parse_args()
    state = ask_all.run(options.video, QUESTIONS, backend=VideoEndpoint(options.url, options.api_key))
    if state.error():
        sys.exit(str(state.error()))
    for question, (answer, meta) in zip(QUESTIONS, state.ret_value, strict=True):
        print(f"> {question}\n{answer}")
        print(f"  {meta['cached_tokens']} of {meta['prompt_tokens']} prompt tokens cached\n")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
