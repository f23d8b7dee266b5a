"""`lvspec play`: a page beside a running server, where people see what was loosened.

    page (static/) ─► gate ─► app: clips, question ─► client (HTTP) ─► SGLang
                        ◄── events, a line of JSON each ◄──────────────┘

The companion holds what the page must not: the API key, the files on this disk, the target's chat template.
"""
