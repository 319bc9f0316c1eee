"""The one exception a user's mistake raises; the command line prints it and exits with 2."""


class UserError(ValueError):
    """Bad configuration, input, file or version. The message names the value and the fix."""
