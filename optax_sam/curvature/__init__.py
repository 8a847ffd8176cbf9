"""Curvature of the loss without storing a Hessian."""
