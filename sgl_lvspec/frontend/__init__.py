"""Videos in SGLang's front-end programs (`sglang.function`), which SGLang 0.5.23 sends to no decoder.

    from sgl_lvspec.frontend import VideoEndpoint, video

    @sgl.function
    def describe(s, clip):
        s += sgl.user(video(clip) + "Describe the video.")
        s += sgl.assistant(sgl.gen("answer", max_tokens=128))

    state = describe.run("clip.mp4", backend=VideoEndpoint("http://127.0.0.1:30000"))

Client side only: nothing of SGLang is changed. `upstream/frontend_video` has what is missing there.
"""

from sgl_lvspec.frontend.endpoint import VideoEndpoint, asking
from sgl_lvspec.frontend.media import image, video

__all__ = ["VideoEndpoint", "asking", "image", "video"]
