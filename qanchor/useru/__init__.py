"""User-understanding pairs (paper, section 3.1): questions about users and their true answers."""
