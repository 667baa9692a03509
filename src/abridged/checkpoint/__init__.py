"""The format on disk: bit packing, quantization_config, save, load, integrity, and what a directory weighs."""
