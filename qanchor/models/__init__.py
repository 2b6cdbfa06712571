"""Features, prefix encoder, language model, heads and saving."""
