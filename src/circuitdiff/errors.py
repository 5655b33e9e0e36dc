"""The one exception that bad input raises: a line that says what to do."""


class InputError(ValueError):
    """Something a user gave cannot be used: what was expected, what came, what to do.

    The command line prints the message as one line and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
