"""Text from a model: prefill, decode, sample. Works with any model that has a config, a transformer and a head."""
