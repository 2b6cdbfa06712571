"""Soft prompts: questions with what labels add to them."""
