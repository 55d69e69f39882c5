"""Image files to uint8 tensors, safely."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from captioner.data.addresses import StoredImage, is_address
from captioner.data.shards import Member, are_shards, expand, samples
from captioner.errors import UserError, printable
from captioner.files import open_regular

if TYPE_CHECKING:
    import torch

# The most pixels an image may have: twice Pillow's own warning limit, where Pillow begins to refuse.
MAX_PIXELS = 178_956_970

MAX_SCANS, SCAN = 100, b"\xff\xda"  # of a JPEG: progressive ones have about ten; how one begins
LARGEST_JPEG = 2**28  # bytes of it that are looked through

# Formats of photographs whose decoders are part of Pillow. EPS (which starts Ghostscript) and the like stay shut.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")

# EXIF orientation -> what turns the stored pixels upright (EXIF 2.3, tag 0x0112)
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """An image that cannot be opened; the line names the file and says why."""


@contextlib.contextmanager
def image_errors(source: object) -> Iterator[None]:
    """Whatever goes wrong inside becomes an :class:`ImageError` that names the source."""
    try:
        yield
    except ImageError:
        raise
    except UserError as error:  # a shard that cannot be read
        raise ImageError(str(error)) from error
    except Exception as error:  # a decoder fed with damaged bytes raises just about anything
        raise ImageError(f"{_name(source)}: {_reason(error)}") from error


def open_image(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image, size_hint: int | None = None, frame: int = 0
) -> Image.Image:
    """Open any image as upright RGB in memory; no file stays open.

    Args:
        source: a path, a :class:`captioner.data.addresses.StoredImage` such as a file of a shard, the bytes of a file,
            a binary stream (read from its start, left open), or an image.
        size_hint: the short side that is needed, in pixels. A large JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size, never below the hint; other formats ignore it.
        frame: which one of an animated file.

    Returns:
        Mode RGB, EXIF orientation applied, transparency laid on white, deep grey scaled to 8 bits.

    Raises:
        ImageError: the source is missing, empty, not an image, damaged, cut short, or above MAX_PIXELS.
    """
    with image_errors(source), warnings.catch_warnings():
        # Pillow warns of odd metadata and of sizes that we judge ourselves: nothing the user can act on
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if isinstance(source, Image.Image):
            _check_size(source, source)
            return _rgb(source)
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), source, size_hint, frame)
        if isinstance(source, (str, os.PathLike)):
            with open_file(source) as file:
                return _read(file, source, size_hint, frame)
        return _read(source, source, size_hint, frame)


def open_file(path: str | os.PathLike) -> BinaryIO:
    """The file of a path, or the bytes of an image in a shard, at an address or in a Parquet file, to read."""
    return path.open() if isinstance(path, StoredImage) else open_regular(path)


def _read(file: BinaryIO, source: object, size_hint: int | None, frame: int) -> Image.Image:
    if file.seekable() and file.seek(0, os.SEEK_END) == 0:
        raise ImageError(f"{_name(source)}: is empty (0 bytes); fetch it again")
    image = Image.open(file, formats=_formats())  # the header only; Pillow seeks to the start itself
    _check_size(image, source)
    if image.format in ("JPEG", "MPO"):
        _check_scans(file, source)
    if frame:
        image.seek(frame)
    if size_hint:
        image.draft(None, (size_hint, size_hint))  # square, so it holds whichever way the image is turned later
    return _rgb(image)


@functools.cache
def _formats() -> tuple[str, ...]:
    """FORMATS as far as this Pillow knows them (AVIF came with 11.3)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, source: object) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{_name(source)}: {_too_large()}")
    if image.width * image.height == 0:
        raise ImageError(f"{_name(source)}: has no pixels")


def _check_scans(file: BinaryIO, source: object) -> None:
    """Each scan of a JPEG may be a few bytes, and is decoded over all of the image."""
    place = file.tell()
    file.seek(0)
    data = file.read(LARGEST_JPEG)
    file.seek(place)
    # What follows the image, such as the film of a moving photograph, may look like any number of them.
    if data.count(SCAN) > MAX_SCANS and (scans := _scans(data)) > MAX_SCANS:
        raise ImageError(f"{_name(source)}: has {scans:,} scans, at most {MAX_SCANS} are decoded; save it anew")


def _scans(data: bytes) -> int:
    """Scans of the image that a JPEG begins with."""
    place, scans = 2, 0
    while (place := data.find(b"\xff", place)) >= 0 and (kind := data[place + 1 : place + 2]) not in (b"", b"\xd9"):
        if kind == b"\xff":  # filling
            place += 1
        elif kind in (b"\0", b"\x01") or b"\xd0" <= kind <= b"\xd8":  # of the data of a scan; alone
            place += 2
        else:
            scans += kind == SCAN[1:]
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return scans


def _rgb(image: Image.Image) -> Image.Image:
    """A new upright RGB image, of (H, W) or (W, H) pixels as the EXIF orientation says."""
    image.load()
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        turn = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # premultiplied, which converts only to its plain twin
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deep grey (modes I;16, I, F) to mode L.

    16-bit files span 0..65535. Elsewhere the file does not say, so the smallest of 0..1, 0..255 and 0..65535 that
    holds every value is taken, and the values' own range where none does. NaN and infinity become 0.
    """
    values = np.asarray(image)  # (H, W)
    rows = [values[first : first + 256] for first in range(0, len(values), 256)]  # a few at a time, to spare memory
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # older Pillows open these as mode I
        low, high = 0.0, 65535.0
    else:
        lows, highs = zip(*((each.min(), each.max()) for each in map(_finite, rows)), strict=True)
        low, high = min(lows), max(highs)
        if low >= 0 and high <= 65535:
            low, high = 0.0, next(top for top in (1.0, 255.0, 65535.0) if high <= top)
    scale = 255 / (high - low) if high > low else 0
    eight = [((_finite(each) - low) * scale).round().clip(0, 255).astype(np.uint8) for each in rows]
    return Image.fromarray(np.concatenate(eight))


def _finite(values: np.ndarray) -> np.ndarray:
    """In float64, since single precision would overflow on odd files; 0 for what is no number."""
    return np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)


def _reason(error: Exception) -> str:
    """What was wrong and what to do, for an exception from the file system or from a decoder."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "no such file; check the path"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image; name a file in it"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a format that can be read ({', '.join(_formats())}); convert it to JPEG or PNG"
    if isinstance(error, Image.DecompressionBombError):
        return _too_large()
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); check the file and its permissions"
    return f"cannot be decoded ({error or type(error).__name__}); it is damaged or cut short, fetch it again"


def _too_large() -> str:
    return f"has more than {MAX_PIXELS:,} pixels; scale it down first"


def _name(source: object) -> str:
    """What an error calls the source."""
    if isinstance(source, bytes):
        return f"image of {len(source):,} bytes"
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fsdecode(source))
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return printable(str(name)) if name else "image"


def eval_transform(image: Image.Image, size: int) -> torch.Tensor:
    """The whole RGB image as uint8 (3, size, size), squashed: captions speak of all of it, so nothing is cropped.

    Bicubic with antialiasing; an image of that size already keeps its exact pixels.
    """
    return _tensor(image.resize((size, size), Image.Resampling.BICUBIC))  # Pillow copies when the size is the same


def train_transform(image: Image.Image, size: int, generator: torch.Generator | None) -> torch.Tensor:
    """A random view of an RGB image that its captions still describe: uint8 (3, size, size).

    A crop of 80..100 % of the area (its aspect ratio 4/5..5/4 of the image's), resized as in eval_transform, with
    brightness and contrast within 10 % and no change of hue, for colours are words. Nothing is mirrored here: 'left'
    and 'right' are words, too, and :class:`captioner.data.dataset.CaptionDataset` changes both together. What a crop
    may falsify is a thing that lies wholly in the outer fifth of the image and is spoken of.

    Every call takes the same number of draws from generator (on the CPU; None: torch's global one).
    """
    import torch

    area, split, left, top, brightness, contrast = torch.rand(6, generator=generator).tolist()
    area = 0.8 + 0.2 * area
    width, height = image.width * area**split, image.height * area ** (1 - split)  # log-uniform ratio, always inside
    left, top = left * (image.width - width), top * (image.height - height)
    box = (left, top, left + width, top + height)
    pixels = _tensor(image.resize((size, size), Image.Resampling.BICUBIC, box=box)).float()  # (3, size, size)

    brightness, contrast = 0.9 + 0.2 * brightness, 0.9 + 0.2 * contrast
    mean = pixels.mean()
    pixels = (pixels - mean) * (brightness * contrast) + mean * brightness
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _tensor(image: Image.Image) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def find_images(paths: Iterable[str], clips: bool = False) -> list[Path | Member]:
    """The image files that the arguments name, in their order, each once.

    A folder stands for every file in it, at any depth, with a suffix in SUFFIXES, sorted; hidden files and folders
    are skipped. A glob pattern (`**` goes any depth down) stands for such files and folders among its matches.
    A .tar, an address or a pattern with braces of such stands for the images in these shards, in their order.
    Anything else is kept as it is, be it missing or oddly named: opening it will say so.

    With `clips` a folder is an album and stands for itself, and patterns find videos, too.

    Raises:
        UserError: a folder, pattern or shard has no image in it, or a shard cannot be read.
    """
    found: dict[Path | Member, None] = {}
    for path in paths:
        images: Sequence[Path | Member]
        if len(path) > 4096 or "\0" in path:  # no file is called so, and patterns are not looked for so
            images = [Path(path)]
        elif is_address(path) or are_shards(path):
            images = [file for file in _packed(path) if _is_image(file.name)]
        elif os.path.isdir(path):
            images = [Path(path)] if clips else sorted(_walk(path))
        elif re.search(r"[*?[]", path) and not os.path.lexists(path):
            images = sorted(set(_match(path, clips)))
        else:
            images = [Path(path)]
        if not images:
            raise UserError(f"{printable(path)}: no image there ({' '.join(SUFFIXES)}); check the path")
        found.update(dict.fromkeys(images))
    return list(found)


def _packed(path: str) -> Iterator[Member]:
    """The files of shards."""
    for shard in expand(path):
        for sample in samples(shard, ()):
            yield from sample.files.values()


def _walk(top: str | Path) -> Iterator[Path]:
    """Image files under a folder. Links are followed, and a folder reached twice is read once, so loops end."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith(".") and _is_image(name))


def _match(pattern: str, clips: bool) -> Iterator[Path]:
    """Image files that a glob pattern names. pathlib's glob, since glob.glob follows links round and round."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?[]", part))
    base, rest = Path(*parts[:first]), parts[first:]
    hidden = any(part.startswith(".") for part in rest)  # wanted only when the pattern spells the dot
    for path in base.glob("/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in rest)):
        if not hidden and any(part.startswith(".") for part in path.relative_to(base).parts):
            continue
        if path.is_dir():
            yield from [path] if clips else _walk(path)
        elif _is_image(path.name) or (clips and path.name.lower().endswith(VIDEOS)):
            yield path


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
