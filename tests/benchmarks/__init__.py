"""Experiments and performance benchmarks: `python -m tests.benchmarks NAME [--json]`."""
