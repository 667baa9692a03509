"""Structured pruning to a budget: masks on the hidden width, heads, inner widths and whole blocks, then a real cut."""
