"""What the user can fix: one clear line instead of a traceback."""


class UserError(Exception):
    """A mistake in the input or the surroundings.

    The message is one line and says what was wrong, where, and what to do. The command line prints it after
    ``captioner: error:`` and exits with code 2. Line breaks, escapes and broken Unicode, of file names and of what
    stands in files, are question marks.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """One line that any terminal can show."""
    return "".join(character if character.isprintable() else "?" for character in text)
