"""What a model can still do: one file per family of metrics."""
