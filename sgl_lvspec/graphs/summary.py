"""One line at start-up: which parts of a round are CUDA graphs."""

from __future__ import annotations


def what_is_captured(device: str, *, verify: bool, relevance: bool, accept: bool, draft: bool) -> str:
    """The line, for the log.

    Args:
        device: of the server, "cuda" or "cpu".
        verify: SGLang captured the target's verify forward.
        relevance: a scorer rides on it.
        accept: the loose rule's accept step is recorded once it is used.
        draft: the draft's steps were captured.
    """
    if device == "cpu":
        return "CUDA graphs: nothing, on a CPU."
    parts = {
        "the target's verify, by SGLang" + (", relevance in it" if relevance else ""): verify,
        "the accept step of greedy rounds, once they occur": accept and verify,
        "the draft's steps": draft,
    }
    captured = [part for part, is_captured in parts.items() if is_captured]
    eager = [part for part, is_captured in parts.items() if not is_captured]
    return f"CUDA graphs: {'; '.join(captured) or 'nothing'}. Without: {'; '.join(eager) or 'nothing'}."
