"""Training loops, data and measurements around `optax_sam`; see README.md here."""
