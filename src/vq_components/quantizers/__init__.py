"""Quantizers: vectors in; vectors, indices and a loss out."""
