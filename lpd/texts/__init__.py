"""Texts to hidden states: what encodes them, and caches of what was encoded."""
