"""A parsed page of captioner and the captions it shows, for the tests of all reports."""

import base64
import io
from html.parser import HTMLParser

import torch
from PIL import Image

from captioner.models.base import Caption

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """The elements of a page, which must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag, kind="") -> list[dict]:
        return [values for name, values in self.found if name == tag and kind in ["", *values.get("class", "").split()]]

    def images(self) -> list[Image.Image]:
        head = "data:image/jpeg;base64,"
        sources = [values["src"] for values in self.all("img")]
        assert all(source.startswith(head) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source[len(head) :]))) for source in sources]


def caption(text: str, grid: int = 0, ended: bool = True) -> Caption:
    terms = (-0.5,) * (len(text.split()) + ended)
    maps = torch.rand(len(terms), grid, grid).flatten(1).softmax(1).view(-1, grid, grid) if grid else None
    return Caption(text, sum(terms), sum(terms), ended, terms, maps)
