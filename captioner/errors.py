"""What the user can fix: one clear line instead of a traceback."""


class UserError(Exception):
    """A mistake in the input or the surroundings.

    The message is one line and says what was wrong, where, and what to do. The command line prints it after
    ``captioner: error:`` and exits with code 2.
    """
