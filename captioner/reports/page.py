"""HTML pages that need no other file, no server and no network, made from Jinja templates."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup
from PIL import Image

from captioner import __version__
from captioner.errors import UserError, counted, decimals, printable
from captioner.files import atomic_write

if TYPE_CHECKING:
    from typing import Self

QUALITY = 80  # of JPEGs
PIECES = Markup("<!-- pieces -->")  # no other value in a template can be this, because < is escaped


def jpeg_uri(image: Image.Image, quality: int = QUALITY) -> Markup:
    """The image as a data: URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return Markup("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())


def _printable_value(value: Any) -> Any:
    """Replace characters that no page can hold, such as the broken Unicode of a file name."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent.parent),  # named by package, such as reports/gallery.html
    autoescape=select_autoescape(),  # in .html
    finalize=_printable_value,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["jpeg_uri"] = jpeg_uri
TEMPLATES.filters |= {"counted": counted, "decimals": decimals}


def render(template: str, **values: Any) -> str:
    """The text of a template."""
    return TEMPLATES.get_template(template).render(values)


def origin(command_line: Sequence[str]) -> dict[str, str]:
    """The variables of origin.html: how and when a page was made; the command line names no folders elsewhere."""
    shown = {word: re.sub(r"^(--[\w.]+=)?@?((?:\.\.)?/.*)", _typed_path, word) for word in command_line}
    now = datetime.now().astimezone()
    return {
        "command": " ".join(_quoted(shown[word]) for word in command_line),
        "moment": now.isoformat(timespec="minutes"),
        "date": f"{now:%Y-%m-%d %H:%M}",
        "version": __version__,
    }


_OUTSIDE = ("/", "../")  # what a path begins with that may lead out of the working folder


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./…-]+", word) else shlex.quote(word)


def _typed_path(found: re.Match[str]) -> str:
    whole, path = found[0], found[2]
    return whole.removesuffix(path) + short_path(path)


def short_path(path: str) -> str:
    """A name for a page that others may see: below the working folder as it is, elsewhere …/ and its last part.

    short_path("/home/ada/data/val.json") is "…/val.json", and in /home/ada "data/val.json", typed as it is
    or as "../ada/data/val.json".
    """
    if not path.startswith(_OUTSIDE):
        return path
    inside = os.path.relpath(path)
    return f"…/{os.path.basename(os.path.abspath(path))}" if inside.startswith("..") else inside


def short_paths(paths: Sequence[str]) -> list[str]:
    """:func:`short_path` of each, with as many of the last parts as tell them apart."""
    found = [short_path(path) for path in paths]
    for parts in range(2, 1 + max((path.count("/") for path in paths), default=0)):
        if len(set(found)) == len(set(paths)):
            break
        found = ["…/" + "/".join(path.split("/")[-parts:]) if path.startswith(_OUTSIDE) else path for path in paths]
    return found


def common_folder(paths: Iterable[str | os.PathLike]) -> str:
    """The absolute folder that all the files lie in, to name them relative to it; addresses are left out."""
    names = [os.fspath(path) for path in paths]
    folders = {os.path.dirname(os.path.abspath(name)) for name in names if "://" not in name}
    return os.path.commonpath(folders) if folders else ""


def without_folders(text: str, folders: Iterable[str]) -> str:
    """The text, in which files below any of the folders are named relative to it."""
    for folder in sorted(filter(None, folders), key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(folder.rstrip('/'))}/", "", text)
    return text


class Page:
    """A page that is written under a temporary name and renamed when ``with Page(…) as page:`` ends without an error.

    Args:
        path: the file; its folder is created when missing.
        template: its name. :meth:`write` adds pieces where it has ``{{ pieces }}``; the rest is evaluated at the
            end, and takes the values known only then from ``page``, which is this object.
        values: the other variables of the template.

    Attributes:
        failures: a line for each image without a caption, listed below the pieces.
    """

    def __init__(self, path: Path, template: str, **values: Any) -> None:
        self.path = path
        self.failures: list[str] = []
        # Strings, one for each expression and each text between two
        self.rendered = TEMPLATES.get_template(template).generate(page=self, pieces=PIECES, **values)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(atomic_write(self.path))
            self.file = stack.enter_context(open(part, "w", encoding="utf-8"))
            self.file.writelines(iter(self.rendered.__next__, PIECES))
            self.file.flush()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # not passed on: atomic_write would report any OSError as one of this file
            self.stack.__exit__(Exception, Exception(), None)
            return
        with self.stack:
            self.file.writelines(self.rendered)

    def write(self, piece: str) -> None:
        """Add some HTML."""
        try:
            self.file.write(piece)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error}); free disk space or name another") from None
