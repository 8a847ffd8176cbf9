"""The error that command lines show without a traceback."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why and what to write instead."""
