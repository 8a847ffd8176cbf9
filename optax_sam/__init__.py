"""Sharpness-aware minimisation as Optax gradient transformations."""
