"""Cluster-based soft prompts on cached prefixes."""
