"""Kronecker decomposition: every matrix as a small sum of Kronecker products (METHODS: KnGPT2)."""
