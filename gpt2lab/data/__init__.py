"""From text to batches: tokenizer, sources, prepare, shards, loader. Knows nothing of models."""
