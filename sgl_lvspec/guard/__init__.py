"""Bounds what loose verification may cost: each request and the whole server are watched, and held stricter in time.

    limits    the bounds, and how much stricter a rule becomes when one is passed
    watch     one request: what was given up, how much was loosened, repetition, drift of the draft's mismatches
    drift     whether mismatches need more care than those that the calibration saw
    warden    the server: settles what new requests start with, applies and counts what was passed
    shadow    what loosening would do to strict requests, and what share of the video's information it would keep
    counters  the same in Prometheus

Runs on the host, on numbers that the round's report carries anyway (`sight.round_report`), once they are there: a
bound acts on the round after the one that passed it. What must not happen even once is bounded in `relax` itself:
shares, runs, and with the guard on a threshold that never rises above the calibrated one. Everything depends on tokens
alone, never on a clock, so all ranks of a server decide alike.
"""
