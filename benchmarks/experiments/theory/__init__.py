"""The theory of the three newest papers as programs: numbers, pictures, verdicts.

The docstring of a program's file says what is claimed, how it is measured and by which rule its verdict is
computed. `docs/evidence/theory.md` shows the results.
"""
