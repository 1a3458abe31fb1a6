"""The page of `gpt2lab app`: two models continue the same prompt, side by side."""
