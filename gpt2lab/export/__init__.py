"""Export: a model as a folder for other tools, with weights, tokenizer and a model card."""
