"""Measurements: each result file says with what and how it was made."""
