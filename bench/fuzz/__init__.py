"""Seeded fuzzing of a server's request surface: `make fuzz N=20000 SEED=1 OUT=file.json`. See bench/README.md."""
