"""Features, prefix encoder, language model, heads, saving."""
