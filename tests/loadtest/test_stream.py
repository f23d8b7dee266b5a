from __future__ import annotations

import io

import pytest

from loadtest.stream import events, lines_of


class Body:
    """A body that gives a line at a time, as geventhttpclient's response does."""

    def __init__(self, text: bytes) -> None:
        self._file = io.BytesIO(text)

    def readline(self, sep: bytes = b"\r\n") -> bytes:
        assert sep == b"\n"  # the default waits for \r\n, which SGLang does not send
        return self._file.readline()


def read(text: bytes) -> list[str]:
    return list(events(lines_of(Body(text))))


def test_events_end_at_done() -> None:
    assert read(b'data: {"a":1}\n\ndata: {"a":2}\n\ndata: [DONE]\n\ndata: {"a":3}\n\n') == ['{"a":1}', '{"a":2}']


def test_comments_other_fields_and_line_ends_of_windows() -> None:
    text = b': ping\r\n\r\nevent: message\r\nid: 7\r\ndata: {"a":1}\r\n\r\nretry: 5\n\ndata:{"a":2}\n\n'
    assert read(text) == ['{"a":1}', '{"a":2}']


def test_several_data_lines_are_one_event() -> None:
    assert read(b"data: one\ndata: two\n\n") == ["one\ntwo"]


def test_half_an_event_at_the_end_is_none() -> None:
    assert read(b'data: {"a":1}\n\ndata: {"a":') == ['{"a":1}']
    assert read(b'data: {"a":1}\n') == []


def test_words_of_several_bytes_are_whole() -> None:
    assert read("data: größer → 動画\n\n".encode()) == ["größer → 動画"]
    with pytest.raises(UnicodeDecodeError):
        read(b"data: \xff\xfe\n\n")
