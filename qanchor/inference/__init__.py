"""Prefix cache, ranking and embedding of whole data sets."""
