"""Hostile traffic on a server that is being sabotaged, and a judge: `make torture`."""
