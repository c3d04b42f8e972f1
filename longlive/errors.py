"""The one exception a user may see as a single line instead of a traceback."""


class UserError(ValueError):
    """Input that cannot work, with a message of one line that names the fix.

    The command line prints it after ``longlive: error:`` and exits with code 2; in Python it is a
    ``ValueError``.
    """
