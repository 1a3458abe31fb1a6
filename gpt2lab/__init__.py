"""gpt2lab: train GPT-2 from scratch, measure it, and hand it to the tools people already use."""

__version__ = "0.1.0"
