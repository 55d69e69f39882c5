"""Open image files of any kind safely, and turn them into uint8 tensors."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from captioner.data.addresses import StoredImage, is_address
from captioner.data.shards import Member, are_shards, expand, samples
from captioner.errors import UserError, counted, install_hint, printable
from captioner.files import open_regular

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 178_956_970  # of an image: where Pillow itself begins to refuse, twice the size it warns of
MAX_SCANS = 100  # of a JPEG: progressive ones have about ten
SCAN = b"\xff\xda"  # the marker that begins a scan

# Formats of photographs that Pillow decodes itself. EPS, which starts Ghostscript, and the like are never opened.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif")
HEIF = (".heic", ".heif")  # with a plugin
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")

ORIENTATION = 0x0112  # the EXIF tag
# value of the tag → transposition of the stored pixels to upright (EXIF 2.3)
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
    """An image that cannot be opened: one line with the name of the file and the reason."""


@contextlib.contextmanager
def image_errors(source: object) -> Iterator[None]:
    """Turn every exception raised in the block into an :class:`ImageError` that names `source`."""
    try:
        yield
    except ImageError:
        raise
    except UserError as error:  # a shard that cannot be read
        raise ImageError(str(error)) from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise ImageError(f"{_source_name(source)}: {_explain(error)}") from error


class _Refused(Exception):
    """An image that is not decoded; the message lacks only the name of the source."""


def open_image(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image, size_hint: int | None = None, frame: int = 0
) -> Image.Image:
    """Open any image as upright RGB in memory; no file stays open.

    Args:
        source: a path, a :class:`captioner.data.addresses.StoredImage` such as a file of a shard, the bytes of a file,
            a binary stream (read from its start, left open), or an image.
        size_hint: the short side that is needed, in pixels. A large JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size, never below the hint; other formats ignore it.
        frame: number of the frame of an animated file.

    Returns:
        Mode RGB, EXIF orientation applied, transparency on white, 16-bit and float grey scaled to 8 bits.

    Raises:
        ImageError: the source is missing, empty, not an image, damaged, cut short, or above MAX_PIXELS.
    """
    with image_errors(source), warnings.catch_warnings():
        # Pillow warns of odd metadata, and of sizes that _check_size checks: nothing the user can act on
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if isinstance(source, Image.Image):
            _check_size(source)
            return _to_rgb(source)
        if isinstance(source, (str, os.PathLike)):
            with open_file(source) as file:
                return _decode(file, size_hint, frame)
        return _decode(io.BytesIO(source) if isinstance(source, bytes) else source, size_hint, frame)


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a path, or an image in a shard, at an address or in a Parquet file, for reading its bytes."""
    return path.open() if isinstance(path, StoredImage) else open_regular(path)


def _decode(file: BinaryIO, size_hint: int | None, frame: int) -> Image.Image:
    if file.seekable() and file.seek(0, os.SEEK_END) == 0:
        raise _Refused("is empty (0 bytes); fetch it again")
    try:
        image = Image.open(file, formats=FORMATS)  # the header only; Pillow seeks to the start itself
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
        if not can_open_heif():
            raise _Refused(f"is HEIC, which needs a plugin: {install_hint('heif')}") from None
        image = Image.open(file, formats=("HEIF",))
    _check_size(image)
    if image.format in ("JPEG", "MPO"):
        _check_scans(file)
    if frame:
        image.seek(frame)
    if size_hint:
        image.draft(None, (size_hint, size_hint))  # square, so it holds for any later rotation
    return _to_rgb(image)


def _is_heif(file: BinaryIO) -> bool:
    """Whether a file begins as HEIF: a box ftyp with one of its brands."""
    file.seek(4)
    return file.read(8) in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")


@functools.cache
def can_open_heif() -> bool:
    """Whether pillow-heif is installed; it is registered with Pillow then."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if image.width * image.height == 0:
        raise _Refused("has no pixels")


def _check_scans(file: BinaryIO) -> None:
    """Reject a JPEG with very many scans: each may be a few bytes long and is decoded over the whole image."""
    position = file.tell()
    file.seek(0)
    data = file.read(2**28)
    file.seek(position)
    if data.count(SCAN) <= MAX_SCANS:
        return
    # Data after the image, such as the video of a live photo, may contain the marker by chance. So count the scans of
    # the first image, by walking its markers up to the one that ends it.
    place, scans = 2, 0
    while (place := data.find(b"\xff", place)) >= 0 and (kind := data[place + 1 : place + 2]) not in (b"", b"\xd9"):
        if kind == b"\xff":  # fill byte
            place += 1
        elif kind in (b"\0", b"\x01") or b"\xd0" <= kind <= b"\xd8":  # part of a scan's data, or a marker of no length
            place += 2
        else:
            scans += kind == SCAN[1:]
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if scans > MAX_SCANS:
        raise _Refused(f"has {scans:,} scans, at most {MAX_SCANS} are decoded; save it again")


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image, turned upright as the EXIF orientation says."""
    image.load()
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block raises nearly anything; the pixels may be intact
        turn = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # premultiplied alpha converts only to La → LA, RGBa → RGBA
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, integer and float grey (modes I;16, I, F) to mode L.

    16-bit files have range 0..65535. Others do not state one: the smallest of 0..1, 0..255 and 0..65535 that holds
    every value is taken, or the values' own range if none does. NaN and infinity become 0.
    """
    values = np.asarray(image)  # (H, W)
    rows = [values[first : first + 256] for first in range(0, len(values), 256)]  # parts, to save memory
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # older versions of Pillow open these in mode I
        low, high = 0.0, 65535.0
    else:
        lows, highs = zip(*((each.min(), each.max()) for each in map(_to_finite, rows)), strict=True)
        low, high = min(lows), max(highs)
        if low >= 0 and high <= 65535:
            low, high = 0.0, next(top for top in (1.0, 255.0, 65535.0) if high <= top)
    scale = 255 / (high - low) if high > low else 0
    eight = [((_to_finite(each) - low) * scale).round().clip(0, 255).astype(np.uint8) for each in rows]
    return Image.fromarray(np.concatenate(eight))


def _to_finite(values: np.ndarray) -> np.ndarray:
    """As float64 (float32 could overflow), with 0 for NaN and infinity."""
    return np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)


def _explain(error: Exception) -> str:
    """The message for an error: what is wrong and what to do."""
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "no such file; check the path"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a format that can be read ({', '.join(FORMATS)}); convert it to JPEG or PNG"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {MAX_PIXELS:,} pixels; scale it down first"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); check the file and its permissions"
    return f"cannot be decoded ({error or type(error).__name__}); it is damaged or cut short, fetch it again"


def _source_name(source: object) -> str:
    if isinstance(source, bytes):
        return f"image of {counted(len(source), 'byte')}"
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fsdecode(source))
    return printable(str(getattr(source, "filename", None) or getattr(source, "name", None) or "image"))


def eval_transform(image: Image.Image, size: int) -> torch.Tensor:
    """The whole RGB image as uint8 (3, size, size), stretched, not cropped, because captions describe all of it.

    Bicubic with antialiasing; an image that has this size keeps its exact pixels.
    """
    return _resized(image, size)


def train_transform(image: Image.Image, size: int, generator: torch.Generator | None) -> torch.Tensor:
    """A random view of an RGB image that its captions still describe: uint8 (3, size, size).

    A crop of 80..100 % of the area, its aspect ratio 4/5..5/4 of the image's, resized as in eval_transform, with
    brightness and contrast changed by up to 10 %. The hue stays, because captions name colours; so do left and right,
    which :class:`captioner.data.dataset.CaptionDataset` flips in image and caption together.

    Every call takes the same number of draws from `generator` (on the CPU; None: torch's global one).
    """
    import torch

    area, split, left, top, brightness, contrast = torch.rand(6, generator=generator).tolist()
    area = 0.8 + 0.2 * area
    # shares area**split and area**(1 - split) of the sides: both at most 1, their product is area, log-uniform ratio
    width, height = image.width * area**split, image.height * area ** (1 - split)
    left, top = left * (image.width - width), top * (image.height - height)
    box = (left, top, left + width, top + height)
    pixels = _resized(image, size, box).float()  # (3, size, size)

    brightness, contrast = 0.9 + 0.2 * brightness, 0.9 + 0.2 * contrast
    mean = pixels.mean()
    pixels = (pixels - mean) * (brightness * contrast) + mean * brightness
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _resized(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> torch.Tensor:
    import torch

    pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))  # (size, size, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def find_images(paths: Iterable[str], clips: bool = False) -> list[Path | Member]:
    """The image files that the arguments name, in their order, each once.

    A folder means its files with a suffix in SUFFIXES, at any depth, sorted, without hidden ones; a glob pattern (`**`
    matches any depth) such files and folders. A .tar, an address or a brace pattern of these means the images in the
    shards. Any other path is returned unchecked. With `clips` a folder is an album and one item itself, and patterns
    match videos, too. A folder, pattern or shard without an image is a UserError.
    """
    found: dict[Path | Member, None] = {}
    for path in paths:
        images: Sequence[Path | Member] = [Path(path)]
        if len(path) > 4096 or "\0" in path:
            pass  # no file has such a name, and globbing it would fail
        elif is_address(path) or are_shards(path):
            files = (file for shard in expand(path) for sample in samples(shard, ()) for file in sample.files.values())
            images = [file for file in files if file.name.lower().endswith(SUFFIXES)]
        elif os.path.isdir(path):
            images = [Path(path)] if clips else _with_or_without_heif(path, sorted(_walk_images(path)))
        elif re.search(r"[*?[]", path) and not os.path.lexists(path):
            images = sorted(set(_glob_images(path, clips)))
        if not images:
            raise UserError(f"{printable(path)}: no image there ({' '.join(SUFFIXES)}); check the path")
        found.update(dict.fromkeys(images))
    return list(found)


def _with_or_without_heif(folder: str, images: list[Path]) -> list[Path]:
    """The images of a folder that can be opened; one line says how many need the plugin that is not installed."""
    heif = {image for image in images if image.name.lower().endswith(HEIF)}
    if not heif or can_open_heif():
        return images
    hint = f"{install_hint('heif')} to open them"
    print(f"{printable(folder)}: {counted(len(heif), 'HEIC image')} left out; {hint}", file=sys.stderr)
    return [image for image in images if image not in heif]


def _walk_images(top: str | Path) -> Iterator[Path]:
    """Image files under a folder. Links are followed; a folder that is reached twice is read once, so loops end."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(top, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if is_image_name(name))


def _glob_images(pattern: str, clips: bool) -> Iterator[Path]:
    """Image files that match a glob pattern. By pathlib, because glob.glob never leaves a loop of links."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?[]", part))
    base, rest = Path(*parts[:first]), parts[first:]
    hidden = any(part.startswith(".") for part in rest)  # only a pattern with the dot matches hidden files
    for path in base.glob("/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in rest)):
        if not hidden and any(part.startswith(".") for part in path.relative_to(base).parts):
            continue
        if path.is_dir():
            yield from [path] if clips else _walk_images(path)
        elif path.name.lower().endswith(SUFFIXES + VIDEOS if clips else SUFFIXES):
            yield path


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: its suffix is in SUFFIXES, and it is not hidden."""
    return name.lower().endswith(SUFFIXES + HEIF) and not name.startswith(".")
