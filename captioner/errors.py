"""Errors that the user can fix, in one clear line instead of a traceback, and the wording of messages."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

# Errors of a full disk or of missing permissions, for any file.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)

# The clone of the repository that captioner runs from; None if it is installed elsewhere.
_root = Path(__file__).parents[1]
REPOSITORY = _root if all((_root / name).is_file() for name in ("setup.cfg", "train.py")) else None


class UserError(Exception):
    """A mistake in the input or the environment, in one printable line: what is wrong, where, and what to do.

    The command line prints it after ``captioner: error:`` and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def install_hint(extra: str) -> str:
    """How to install the packages of an extra, or of several with commas between them."""
    if REPOSITORY is None:
        return f"pip install 'captioner[{extra}]'"
    where = "." if Path.cwd() == REPOSITORY else REPOSITORY
    return f"pip install -e '{where}[{extra}]'"


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """``: did you mean soft?`` with the nearest of the known names, or nothing.

    >>> did_you_mean("sft", ["none", "soft"]), did_you_mean("x", ["none", "soft"])
    (': did you mean soft?', '')
    """
    spelled = {name.lower(): name for name in known}
    begun = [name for name in spelled if len(typed) > 1 and name.startswith(typed.lower())]
    close = [*begun, *get_close_matches(typed.lower(), spelled, 1)]
    return f": did you mean {spelled[close[0]]}?" if close else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun, which is in the plural unless it is one.

    >>> counted(1, "batch"), counted(0, "epoch"), counted(2000, "batch")
    ('1 batch', '0 epochs', '2,000 batches')
    """
    plural = f"{noun}es" if noun.endswith(("tch", "s", "x")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def decimals(number: float, form: str = ".2f") -> str:
    """A number in a format of Python's, without the sign of a zero.

    >>> decimals(-0.004), decimals(0.004, "+.2f"), decimals(-1.5, "+.2f")
    ('0.00', '0.00', '-1.50')
    """
    text = f"{number:{form}}"
    return text if float(text) else text.lstrip("+-")


def printable(text: str) -> str:
    """The text as one line: line breaks become spaces; control characters and broken Unicode, question marks."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or its type where it has none; at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
