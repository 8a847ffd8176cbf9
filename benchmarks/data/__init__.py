"""Data sets: their sources, loading as arrays, label noise and augmentation."""
