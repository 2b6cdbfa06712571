"""Shared plumbing: files, hashes, devices, progress, arrays."""
