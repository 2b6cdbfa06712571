"""Shared plumbing."""
