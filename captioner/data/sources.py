"""Images as Python programs have them: paths, PIL images, arrays, tensors, bytes, open files, and addresses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioner.data.addresses import RemoteImage, StoredImage, is_address
from captioner.data.clips import load_pixels
from captioner.data.images import ImageError

ImageSource = str | os.PathLike | Image.Image | np.ndarray | Tensor | bytes | bytearray | memoryview | BinaryIO
EXPECTED = "a path, a PIL image, an array, a tensor, bytes or a file opened for reading bytes"
ROUNDING = 0.5 / 255  # floats this far outside of 0..1 still round to 0..255


def is_single(images: Any) -> bool:
    """Whether this is one image, not several: an array or tensor of four dimensions is a batch of several.

    ImageError for what is neither, and for a set or a dictionary, which have no order that captions could have.
    """
    if isinstance(images, (str, os.PathLike, Image.Image, bytes, bytearray, memoryview)) or hasattr(images, "read"):
        return True
    if _is_array(images):
        names = isinstance(images, np.ndarray) and images.dtype.kind in "OUS" and images.ndim > 0
        return not (images.ndim == 4 or names or (images.ndim == 1 and not isinstance(images, (np.ndarray, Tensor))))
    if isinstance(images, (Mapping, Set)) or not isinstance(images, Iterable):
        raise ImageError(f"images are of type {type(images).__name__}: expected {EXPECTED}, or a list of these")
    return False


def load_source(image: Any, name: str, size: int, frames: int = 0, allow_urls: bool = False) -> Tensor:
    """The input of a model, see :func:`captioner.data.clips.load_pixels`, of any :data:`ImageSource`.

    ImageError, which calls an image that has no name of its own by `name`.
    """
    source = _to_source(image, name, allow_urls)
    try:
        return load_pixels(source, size, frames)
    except ImageError as error:
        if isinstance(source, (str, os.PathLike)):
            raise
        raise ImageError(f"{name}: {error}") from error


def _to_source(image: Any, name: str, allow_urls: bool) -> Any:
    """The image as :func:`captioner.data.images.open_image` takes it."""
    if isinstance(image, (str, os.PathLike)):
        if not os.fspath(image):
            raise ImageError(f"{name} is an empty string: expected {EXPECTED}")
        if isinstance(image, StoredImage) or not is_address(os.fsdecode(image)):
            return image
        if not allow_urls:
            raise ImageError(f"{image} is an address: caption(…, allow_urls=True) fetches it, or download it first")
        return RemoteImage(os.fsdecode(image))
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        if getattr(image, "closed", False):
            raise ImageError(f"{name} is a closed file: open it again")
        if isinstance(image.read(0), str):
            raise ImageError(f"{name} is a file opened as text: open it with mode 'rb'")
        seekable = getattr(image, "seekable", None)
        return image if seekable is not None and seekable() else image.read()
    if _is_array(image):
        return Image.fromarray(_to_bytes(_channels_last(image, name), name))
    raise ImageError(f"{name} is of type {type(image).__name__}: expected {EXPECTED}")


def _is_array(image: Any) -> bool:
    return hasattr(image, "__array__") and hasattr(image, "ndim")


def _channels_last(image: Any, name: str) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4), from a tensor (C, H, W) or an array (H, W, C); ImageError for another shape."""
    is_tensor = isinstance(image, Tensor)
    if is_tensor:
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # numpy has none
    array, counts, hint = np.asarray(image), (1, 3, 4), ""
    if array.ndim == 3 and array.shape[0 if is_tensor else 2] in counts:
        array = array.transpose(1, 2, 0) if is_tensor else array
        return array[:, :, 0] if array.shape[2] == 1 else array
    if array.ndim == 2 and not is_tensor:
        return array
    if array.ndim == 3 and array.shape[2 if is_tensor else 0] in counts:
        hint = "; give .permute(2, 0, 1) of it" if is_tensor else "; give .transpose(1, 2, 0) of it"
    what, expected = ("tensor", "(3, H, W) or (1, H, W)") if is_tensor else ("array", "(H, W, 3) or (H, W)")
    raise ImageError(f"{name} is a{'n' * (not is_tensor)} {what} of shape {array.shape}: expected {expected}{hint}")


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """As uint8; floats have the range 0..1, as matplotlib and torchvision have it. ImageError for other numbers."""
    if array.size == 0:
        raise ImageError(f"{name} has no pixels: its shape is {array.shape}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise ImageError(f"{name} has the type {array.dtype}: expected uint8, 0 to 255, or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low > -ROUNDING and high < 1 + ROUNDING):  # also NaN
        values = f"{array.dtype} values from {low:.4g} to {high:.4g}"
        raise ImageError(f"{name} has {values}: expected floats from 0 to 1, or uint8 from 0 to 255")
    return np.ascontiguousarray((255 * array.astype(np.float32)).round().clip(0, 255).astype(np.uint8))
