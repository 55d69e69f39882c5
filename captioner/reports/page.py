"""An HTML page that needs no other file, no server and no network, written piece by piece from a template."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from captioner.errors import UserError, printable
from captioner.files import atomic_write

if TYPE_CHECKING:
    from typing import Self

SHARED_ASSETS = ("page.css", "maps.js")  # templates include them as {{page.css}} and {{maps.js}}
QUALITY = 80  # of JPEGs


class Page:
    """A page that is written under a temporary name and renamed when ``with Page(…) as page:`` ends without an error.

    Args:
        path: the file; its folder is created when missing.
        template: name of the HTML file in this package; :meth:`write` adds pieces where it has {{pieces}}.
        values: HTML for the other {{names}} above the pieces.

    Attributes:
        failures: a line for each image without a caption, listed below the pieces.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, path: Path, template: str, **values: str) -> None:
        self.path = path
        self.failures: list[str] = []
        whole = fill_template(read_asset(template), {name: read_asset(name) for name in SHARED_ASSETS})
        top, self.bottom = whole.split("{{pieces}}")
        self.top = fill_template(top, values)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(atomic_write(self.path))
            self.file = stack.enter_context(open(part, "w", encoding="utf-8"))
            self.file.write(self.top)
            self.file.flush()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # not passed on: atomic_write would take any OSError for one of this file
            self.stack.__exit__(Exception, Exception(), None)
            return
        with self.stack:
            self.file.write(fill_template(self.bottom, {"failures": self._failures_html(), **self.end_values()}))

    def write(self, piece: str) -> None:
        """Add some HTML."""
        try:
            self.file.write(piece)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error}); name another place or free disk space"
            ) from None

    def end_values(self) -> dict[str, str]:
        """HTML for the {{names}} below the pieces."""
        return {}

    def _failures_html(self) -> str:
        if not self.failures:
            return ""
        items = "".join(f"<li>{escape(failure)}</li>\n" for failure in self.failures)
        return f'<section class="failures">\n<h2>Images without a caption</h2>\n<ul>\n{items}</ul>\n</section>\n'


def read_asset(name: str) -> str:
    """The text of a file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Replace each {{name}} that has a value; a {{name}} inside a value stays."""
    return re.sub(r"\{\{([\w.]+)\}\}", lambda match: values.get(match[1], match[0]), template)


def escape(text: str) -> str:
    """Text as HTML; characters that no page can hold, such as the broken Unicode of a file name, become ?."""
    return html.escape(printable(text))


def jpeg_uri(image: Image.Image, quality: int = QUALITY) -> str:
    """The image as a data: URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
