"""User tokens, text vectors, the reader, language models that read users, and saved runs."""
