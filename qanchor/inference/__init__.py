"""Prefix cache, ranking, whole data sets."""
