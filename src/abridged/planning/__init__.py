"""Which matrix gets how many bits, so that a model fits a size that somebody names and loses as little as it can."""
