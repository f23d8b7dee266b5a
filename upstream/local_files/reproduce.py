"""What SGLang 0.5.23 reads and tells for a client that only sends requests; needs SGLang and no server.

    python reproduce.py VIDEO.mp4

Each function is the one that an HTTP request reaches with the string that the client sent.
"""

from __future__ import annotations

import base64
import http.server
import sys
import tempfile
import threading
from pathlib import Path

import av
from sglang.srt.sampling.watermarking.core import redact_watermark_secrets
from sglang.srt.utils import common
from sglang.srt.utils.auth import AuthLevel, decide_request_auth


def data_url(content: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(content).decode()


def secret_of_the_server(video: Path, folder: Path) -> Path:
    """The video as a file of the server's machine that a playlist can name."""
    path = folder / "secret.ts"
    with av.open(str(video)) as source, av.open(str(path), "w", format="mpegts") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    return path


def told(read: object) -> str:
    try:
        return f"read, {len(read())} frames or bytes"  # type: ignore[operator]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:110]}"


class Files(http.server.SimpleHTTPRequestHandler):
    """Answers with a redirect to another host, or with its address."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/x")
        else:
            self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    video = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        inside = f"http://127.0.0.1:{server.server_address[1]}"
        secret = secret_of_the_server(video, Path(name))
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{secret}\n#EXT-X-ENDLIST\n".encode()
        common.configure_media_url_security(["example.org"], 64)
        print("with --allowed-media-domains example.org")
        for title, source in (
            ("a path", str(secret)),
            ("a file: URL of another host", f"file://elsewhere{secret}"),
            ("a playlist, uploaded", data_url(playlist)),
            ("an address that is not allowed", f"{inside}/x.mp4"),
            ("the same in upper case, with a path that exists here", f"{inside.upper()}{secret}"),
        ):
            print(f"  {title:53} {told(lambda source=source: common.load_video(source, use_gpu=False))}")
        common.configure_media_url_security(["127.0.0.1"], 64)
        print("with --allowed-media-domains 127.0.0.1")
        print(f"  {'a redirect to localhost':53} {told(lambda: common.download_remote_media(inside + '/redirect', 5))}")
        common.configure_media_url_security([], 64)
        print("without it")
        print(f"  {'an address of this machine':53} {told(lambda: common.download_remote_media(inside + '/x', 5))}")
        server.shutdown()
    level = AuthLevel.NORMAL
    asked = decide_request_auth(
        method="GET", path="/server_info", authorization_header=None, api_key=None, admin_api_key="K", auth_level=level
    )
    print(f"/server_info without any key, with --admin-api-key set: {'answered' if asked.allowed else 'refused'}")
    print("what is logged, and told by /server_info")
    print(f"  {redact_watermark_secrets({'api_key': 'THE-KEY', 'admin_api_key': 'THE-ADMINS-KEY'})}")


if __name__ == "__main__":
    main()
