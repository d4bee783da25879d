"""Chunks on their way from the journal to the readers."""
