"""Images as Python programs have them: every kind gives the pixels of its file, or one line."""

import io
import pathlib
import re
import tempfile

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image

from captioner.data.addresses import RemoteImage
from captioner.data.clips import load_pixels
from captioner.data.images import ImageError
from captioner.data.sources import is_single, load_source


class Stream:
    """A response of the network: bytes that can be read once."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def read(self, size=-1):
        return self.data.read(size)


class ArrayLike:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.ndim = array, array.ndim

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A PNG of 40 × 24 pixels, all of another colour."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def kinds(file):
    array = np.array(Image.open(file))  # (24, 40, 3)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    data = file.read_bytes()
    alpha = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    return {
        "path": file,
        "string": str(file),
        "numpy string": np.str_(file),
        "PIL": Image.open(file),
        "array": array,
        "a view of an array": np.asfortranarray(array)[::-1][::-1],
        "array with alpha": alpha,
        "floats": array / 255,
        "floats with rounding": array.astype(np.float32) / np.float32(255) * np.float32(1.0000001),
        "another library's": ArrayLike(array),
        "tensor": tensor,
        "float tensor": tensor / 255,
        "tensor with gradient": (tensor / 255).requires_grad_(),
        "double tensor": tensor.double() / 255,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "stream": Stream(data),
        "open file": file.open("rb"),
    }


def test_every_kind_has_the_pixels_of_the_file(photo):
    expected = load_pixels(photo, 16)
    for name, image in kinds(photo).items():
        assert is_single(image), name
        assert torch.equal(load_source(image, "the image", 16), expected), name


def test_grey_images(photo):
    grey = np.array(Image.open(photo).convert("L"))
    expected = load_pixels(Image.fromarray(grey), 16)
    for image in (grey, grey[:, :, None], torch.from_numpy(grey)[None], grey / 255):
        assert torch.equal(load_source(image, "the image", 16), expected)


def test_several(photo):
    array = np.zeros((5, 4, 4, 3), np.uint8)
    for images in ([], [photo], (photo,), iter([photo]), {photo: 1}.values(), array, torch.zeros(2, 3, 4, 4)):
        assert not is_single(images)
    assert not is_single(np.array(["a.jpg", "b.jpg"]))
    assert is_single(np.array("a.jpg"))
    refused(load_source, np.array("a.jpg"), "the image", 16, says=["an array of shape ()"])
    for images in ({"a.jpg"}, {"a.jpg": 1}, 3, None):
        kind = type(images).__name__
        refused(is_single, images, says=[f"images are of type {kind}: ", "a path, a PIL image", "a list"])


ARRAY = np.zeros((24, 40, 3))
WRONG = {
    "a number": (7, ["image 3 is of type int", "a path, a PIL image"]),
    "None": (None, ["image 3 is of type NoneType"]),
    "a pair, as data sets give": ((ARRAY, 5), ["image 3 is of type tuple"]),
    "a list": ([ARRAY], ["image 3 is of type list"]),
    "channels first": (np.zeros((3, 24, 40), np.uint8), ["an array of shape (3, 24, 40)", ".transpose(1, 2, 0)"]),
    "channels last": (torch.zeros(24, 40, 3), ["a tensor of shape (24, 40, 3)", "(3, H, W)", ".permute(2, 0, 1)"]),
    "features": (torch.zeros(2048), ["a tensor of shape (2048,)", "(3, H, W)"]),
    "a matrix": (torch.zeros(24, 40), ["a tensor of shape (24, 40)", "(1, H, W)"]),
    "two channels": (np.zeros((24, 40, 2), np.uint8), ["shape (24, 40, 2)"]),
    "no pixels": (np.zeros((0, 40, 3), np.uint8), ["no pixels", "(0, 40, 3)"]),
    "floats to 255": (ARRAY + 255.0, ["float64 values from 255 to 255", "0 to 1"]),
    "normalised": (torch.full((3, 24, 40), -2.1), ["values from -2.1 to -2.1"]),
    "not a number": (ARRAY * np.nan, ["nan"]),
    "integers": (ARRAY.astype(int), ["int64", "uint8"]),
    "16 bits": (ARRAY.astype(np.uint16), ["uint16"]),
    "truth": (ARRAY > 0, ["bool"]),
    "objects": (ARRAY.astype(object), ["object"]),
    "text": (io.StringIO("photo"), ["image 3 is a file opened as text", "'rb'"]),
    "damaged bytes": (b"photo", ["image 3: ", "5 bytes", "not an image"]),
    "empty bytes": (b"", ["image 3: ", "is empty"]),
    "an empty stream": (Stream(b""), ["image 3: ", "is empty"]),
    "an empty path": ("", ["image 3 is an empty string", "a path"]),
    "an address": ("https://example.org/a.jpg", ["https://example.org/a.jpg is an address", "allow_urls=True"]),
    "a bucket": ("s3://bucket/a.jpg", ["s3://bucket/a.jpg", "allow_urls=True"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_things_are_called_by_their_names(case):
    image, says = WRONG[case]
    line = refused(load_source, image, "image 3", 16, says=says)
    assert "damaged" not in line


def test_files_that_cannot_be_read(photo, tmp_path):
    with photo.open("rb") as file:
        pass
    refused(load_source, file, "the image", 16, says=["closed"])
    with tempfile.NamedTemporaryFile("w+", suffix=".jpg") as text:  # a wrapper, no text file itself
        refused(load_source, text, "the image", 16, says=["opened as text"])
    refused(load_source, tmp_path, "the image", 16, says=[str(tmp_path), "is a folder", "name the images in it"])
    refused(load_source, tmp_path / "no.jpg", "the image", 16, says=["no.jpg: no such file"])


def test_addresses_are_fetched_only_when_allowed(photo, monkeypatch):
    fetched = []

    def read(self):
        fetched.append(self.address)
        return io.BytesIO(photo.read_bytes())

    monkeypatch.setattr(RemoteImage, "open", read)
    for address in ("https://example.org/a.jpg", "s3://bucket/a.jpg", "file:///etc/passwd"):
        with pytest.raises(ImageError, match=re.escape(address)):
            load_source(address, "the image", 16)
    assert not fetched
    assert torch.equal(load_source("https://example.org/a.jpg", "", 16, allow_urls=True), load_pixels(photo, 16))
    assert fetched == ["https://example.org/a.jpg"]
    assert torch.equal(load_source(RemoteImage("s3://b/a.jpg"), "", 16), load_pixels(photo, 16))  # asked for by name


def test_a_path_of_another_class(photo):
    class Wrapped(pathlib.PurePosixPath):
        pass

    assert torch.equal(load_source(Wrapped(photo), "the image", 16), load_pixels(photo, 16))
