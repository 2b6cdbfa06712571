"""Soft prompts: questions tuned on labelled users."""
