"""The one kind of error that a user's input can cause."""


class KsmError(Exception):
    """Bad input, told in one line: the value, what was expected, and what to do.

    The command line prints it without a traceback and exits with status 1.
    """
