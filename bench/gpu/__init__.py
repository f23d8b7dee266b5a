"""Kernels on a GPU: their tests compiled, their speed against the memory's, their share of a round.

Imports torch and Triton only, so a machine that has nothing else can run `kernel_tests` and `run`; `serve` needs
SGLang.
"""
