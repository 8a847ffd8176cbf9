"""The error that the command-line programs show without a traceback."""


class UsageError(ValueError):
    """The request cannot be fulfilled; the message says why and what to write instead."""
