"""A model as a folder that other tools open: weights, tokenizer, and a card that says what it is."""
