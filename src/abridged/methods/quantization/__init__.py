"""Quantisation-aware training: weights, embeddings and activations in few bits (METHODS: QuantGPT and rivals)."""
