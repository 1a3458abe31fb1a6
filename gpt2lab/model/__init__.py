"""The model: its architecture, its weights on disk, its arithmetic, and text from it. Knows torch alone."""
