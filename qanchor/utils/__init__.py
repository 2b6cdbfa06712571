"""Shared plumbing: atomic files, hashing, devices, progress and array helpers."""
