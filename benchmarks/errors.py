"""The errors that the command-line programs show without a traceback."""


class UsageError(ValueError):
    """The request cannot be fulfilled; the message says why and what to write instead."""


class DivergenceError(UsageError):
    """A training whose loss is no longer finite: in an experiment a result like any other."""
