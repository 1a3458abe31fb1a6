"""A page to compare two models on: the same prompt, continued by both, side by side."""
