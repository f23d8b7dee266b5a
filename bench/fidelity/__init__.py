"""What loose verification keeps and what it loses, on held-out clips with known truth: `python -m bench.fidelity`."""
