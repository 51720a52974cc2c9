"""Errors that a user can mend: one line with what was wrong, what was expected, what to do."""


class UsageError(ValueError):
    """A wrong argument or setting. The command line prints it as one line and exits with code 2."""


class DataError(RuntimeError):
    """A data set that cannot be had, or a file that is damaged. Exit code 1."""


class Diverged(RuntimeError):
    """A run whose model is no longer finite."""
