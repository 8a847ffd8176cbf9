"""The claims of the three newest papers, each tested by a small program: numbers, a picture, a verdict.

The docstring of a claim's file says what is claimed, how it is measured and by which rule its verdict is
computed. The measurement, the tables and the picture follow. `docs/evidence/claims.md` shows the results.
"""
