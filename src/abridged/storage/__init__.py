"""How weights are stored: code books, packing, shapes, and the format of checkpoints as plain data."""
