"""What the three newest papers claim, each claim tested by a small program: numbers, a picture, a verdict.

A claim's file says in its docstring what is claimed, how it is measured and by which rule its verdict is
computed; then come the measurement, the tables and the picture. `docs/claims.md` shows the results.
"""
