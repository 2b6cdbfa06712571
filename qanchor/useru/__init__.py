"""User-understanding pairs (paper 3.1): what is asked and what is true."""
