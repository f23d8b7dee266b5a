"""A client of one SGLang server, for what shows answers token by token: `lvspec play` and `lvspec explain`.

    media, chat ─► body of /generate ─► server (HTTP) ─► chunks ─► answer: tokens with labels, numbers

Talks HTTP alone, so the server may run anywhere; imports nothing of SGLang.
"""
