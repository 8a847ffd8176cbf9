"""Descent stages: the gradient at the perturbed point to the direction of the base optimizer."""
