"""Errors that the user can fix: one clear line instead of a traceback."""

import errno

# Errors of a full disk or of missing permissions, for any file.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake in the input or the environment, in one printable line: what is wrong, where, and what to do.

    The command line prints it after ``captioner: error:`` and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text as one line: line breaks become spaces; control characters and broken Unicode, question marks."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or its type where it has none; at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
