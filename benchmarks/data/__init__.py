"""Data sets: where they come from, as arrays, with wrong labels and random changes."""
