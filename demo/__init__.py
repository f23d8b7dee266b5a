"""Synthetic video clips with exact ground truth, and the small Qwen2.5-VL pair trained on them."""
