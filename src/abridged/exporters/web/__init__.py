"""Export to a folder that a browser runs: a page, the engine, and the model."""
