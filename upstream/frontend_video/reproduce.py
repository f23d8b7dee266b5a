"""What SGLang 0.5.23's front end does with a video, two images, choices, errors: `reproduce.py URL CLIP IMAGE`."""

from __future__ import annotations

import sys
import threading
import time
import warnings

import sglang as sgl
from sglang.lang.chat_template import get_chat_template


@sgl.function
def ask_video(s, clip):
    s += sgl.user(sgl.video(clip, 8) + "Describe the video.")
    s += sgl.assistant(sgl.gen("answer", max_tokens=32, temperature=0))


@sgl.function
def ask_images(s, still):
    s += sgl.user(sgl.image(still) + sgl.image(still) + "Compare the images.")
    s += sgl.assistant(sgl.gen("answer", max_tokens=32, temperature=0))


@sgl.function
def choose(s):
    s += "One and one is" + sgl.select("answer", choices=[" two", " three"])


@sgl.function
def choose_unconditional(s):
    method = sgl.unconditional_likelihood_normalized
    s += "One and one is" + sgl.select("answer", choices=[" two", " three"], choices_method=method)


@sgl.function
def ask_wrongly(s):
    s += "One and one is" + sgl.gen("answer", temperature=-1)


@sgl.function
def fail_and_go_on(s):
    s += sgl.image("no such file")
    time.sleep(1)  # as long as any Python code between two lines of a program
    s += "and"


def show(name: str, state) -> None:
    error = state.error()
    print(f"{name}: {type(error).__name__ + ': ' + str(error)[:200] if error else state['answer']}")


def main() -> None:
    url, clip, still = sys.argv[1:4]
    warnings.simplefilter("ignore")
    backend = sgl.RuntimeEndpoint(url)
    backend.chat_template = get_chat_template("qwen2-vl")
    show("sglang.video", ask_video.run(clip, backend=backend))
    show("two images", ask_images.run(still, backend=backend))
    state = choose.run(backend=backend)
    rows = state.get_meta_info("answer")["input_token_logprobs"]
    print("select: tokens in the first choice's mean:", [row[2] for row in rows[0] if row[0]])
    show("select, unconditional", choose_unconditional.run(backend=backend))
    show("refused", ask_wrongly.run(backend=backend))
    show("refused, streamed", ask_wrongly.run(backend=backend, stream=True))
    state = fail_and_go_on.run(backend=backend)
    waiting = threading.Thread(target=state.error, daemon=True)
    waiting.start()
    waiting.join(10)
    print("error() of a failed program:", "still waiting after 10 s" if waiting.is_alive() else "told")


if __name__ == "__main__":
    main()
