"""Text by name or by path, tokenised into blocks that training and evaluation read."""
