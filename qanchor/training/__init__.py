"""Training on concepts of the users' own past, without labels."""
