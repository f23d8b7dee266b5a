"""Any OpenAI client: a streamed chat about a video, and `extra_body` for what is LVSPEC's own.

    python examples/openai_client.py --video demo/clips/passing.mp4

Asks a first question by the server's own rule and a second one strictly. T comes with `return_spec_tokens_details`;
whole summaries and labels come with `return_meta_info`, in chats that are not streamed (docs/answers.md).

    > How many objects are there? (strict)
    We see two figures: a orange bar and a purple cross.
      2 rounds, T = 6.00
"""

import argparse
import base64
import os
import sys
from pathlib import Path

import openai


def ask(client: openai.OpenAI, model: str, messages: list, lvspec: dict | None) -> str:
    """Stream an answer to the terminal; returns it."""
    extra = {"return_spec_tokens_details": True}
    if lvspec:
        extra["custom_params"] = {"lvspec": lvspec}
    answer, details = "", {}
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=128, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body=extra,
    )  # fmt: skip
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            answer += piece
            print(piece, end="", flush=True)
        details = ((chunk.model_extra or {}).get("sglext") or {}).get("spec_tokens_details") or details
    rounds = details.get("spec_verify_ct", 0)
    told = f"{rounds} rounds, T = {details['spec_num_correct_drafts'] / rounds:.2f}" if rounds else "no speculation"
    print(f"\n  {told}\n")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key", default=os.environ.get("LVSPEC_API_KEY"), help="or in LVSPEC_API_KEY")
    parser.add_argument("--video", default="demo/clips/passing.mp4")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.url.rstrip("/") + "/v1", api_key=options.api_key or "none")
    model = client.models.list().data[0].id

    # A data: URL, so that the server need not share our disk. The video comes first: later turns begin with the same
    # tokens, and find it in the cache.
    url = "data:video/mp4;base64," + base64.b64encode(Path(options.video).read_bytes()).decode()
    first = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What happens in this clip?"}]
    messages: list = [{"role": "user", "content": first}]
    print("> What happens in this clip?")
    answer = ask(client, model, messages, None)
    messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": "How many objects are there?"})
    print("> How many objects are there? (strict)")
    ask(client, model, messages, {"mode": "strict"})


if __name__ == "__main__":
    try:
        main()
    except openai.APIConnectionError as error:
        sys.exit(
            f"A server is needed; found {error.__cause__ or error}. Start one (make serve), or name it with --url."
        )
    except (openai.APIError, OSError) as error:
        sys.exit(str(error))
