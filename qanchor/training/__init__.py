"""Training on the users' own past, without labels."""
