"""Networks, in Flax nnx."""
