"""What the user can fix: one clear line instead of a traceback."""

import errno

# What a disk or a folder refuses, whoever asks.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake in the input or the surroundings.

    The message is one line and says what was wrong, where, and what to do. The command line prints it after
    ``captioner: error:`` and exits with code 2. Line breaks in file names, and in what stands in files, are spaces;
    escapes and broken Unicode are question marks.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """One line that any terminal and any page can show, in the direction in which it is written."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
