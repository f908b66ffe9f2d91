"""The anchor: the small causal language model that holds common knowledge, and its tokenizer."""
