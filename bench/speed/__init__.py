"""How much faster answers come, beside what the cost model allows: `make bench-speed`."""
