"""Writes an MP4 file anew with 2,147,483,654 frames in its index, which is one byte: `forge.py VIDEO_FILE OUT.mp4`."""

import sys
from pathlib import Path

content = bytearray(Path(sys.argv[1]).read_bytes())
content[content.find(b"stts") + 12] |= 0x80
Path(sys.argv[2]).write_bytes(content)
