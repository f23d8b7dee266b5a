"""The served model sees when a frame was taken, and the cache does not mix videos that differ in time alone."""

from __future__ import annotations

from tests.clips import clip, data_url
from tests.server.prompts import VIDEO, chat, payload
from tests.server.serving import Server


def test_equal_frames_at_another_rate_share_no_keys(lvspec_server: Server) -> None:
    """Cached keys are rotated by their times."""
    prompt = chat(VIDEO + "What happens first?")
    # Lossless, so that both decode to the same pixels and only the times differ.
    slow, fast = (
        payload(
            prompt,
            max_new_tokens=24,
            video_data=data_url(clip(8, fps, codec="ffv1", container="matroska")),
        )
        for fps in (0.5, 2)
    )
    lvspec_server.flush()
    alone = lvspec_server.generate(slow)
    lvspec_server.flush()
    first = lvspec_server.generate(fast)
    again = lvspec_server.generate(fast)
    other = lvspec_server.generate(slow)
    length = first["meta_info"]["prompt_tokens"]
    assert again["meta_info"]["cached_tokens"] == length - 1, "the same video is found whole"
    assert other["meta_info"]["cached_tokens"] < length // 2, "of the other one only the words before it are found"
    assert other["output_ids"] == alone["output_ids"]
