"""Ascent stages: a gradient to a perturbation."""
