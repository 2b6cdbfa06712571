"""User tokens, text vectors, the pointing reader, language models that read users, saving."""
