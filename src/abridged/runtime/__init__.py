"""Inference from packed weights: the modules of a loaded model and the torch ops that they call."""
