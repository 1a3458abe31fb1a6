"""Data: from text to batches. Sources, tokenizer, preparation of token shards, and the loader that reads them."""
