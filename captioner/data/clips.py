"""Clips and albums: evenly spaced frames of a video, an animated image or a folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from captioner.data.images import (
    MAX_PIXELS,
    VIDEOS,
    ImageError,
    eval_transform,
    image_errors,
    is_image_name,
    open_file,
    open_image,
)
from captioner.errors import install_hint

if TYPE_CHECKING:
    from torch import Tensor

ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # in other formats (TIFF, MPO) further images are pages and previews
# The formats ffmpeg may recognise: no playlists, which could make it open other files or addresses.
CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegvideo,asf,flv,ogg"


def evenly_spaced(available: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0 … available − 1, evenly spaced, with the first and the last.

    >>> evenly_spaced(11, 3), evenly_spaced(2, 3)
    ([0, 5, 10], [0, 1])
    """
    if available <= wanted:
        return list(range(available))
    return [(2 * i * (available - 1) + wanted - 1) // (2 * (wanted - 1)) for i in range(wanted)]  # rounded


def album_images(folder: str | os.PathLike) -> list[Path]:
    """The images directly in a folder, 2.jpg before 10.jpg, without hidden ones."""
    names = list(filter(is_image_name, os.listdir(folder)))
    names.sort(key=lambda name: ([int(n) if n.isdigit() else n for n in re.split(r"([0-9]+)", name.lower())], name))
    return [Path(folder, name) for name in names]


def load_pixels(
    source: Any, size: int, frames: int = 0, transform: Callable[[Image.Image, int], Tensor] = eval_transform
) -> Tensor:
    """The input of a model: uint8 (3, size, size) for an image, (frames, 3, size, size) for a clip or album.

    `source` is as for :func:`captioner.data.images.open_image`; with `frames` also a video (read by PyAV), an
    animated image, or a folder, the album of the images in it. The frames are evenly spaced; a shorter clip
    is padded at its end with frames of 0. ImageError if something cannot be read.
    """
    if not frames:
        if _is_video(source):
            raise ImageError(f"{source}: is a video, and this model captions images: train one with --model.frames 8")
        if _is_album(source):
            raise ImageError(f"{source}: is a folder, and this model captions images: name the images in it")
        return transform(open_image(source, size_hint=size), size)
    import torch

    pixels = torch.zeros(frames, 3, size, size, dtype=torch.uint8)
    for i, image in enumerate(_frames(source, frames, size)):
        pixels[i] = transform(image, size)
    return pixels


def thumbnail(source: Any, size: int) -> Image.Image:
    """An image, or the middle frame of a clip or album, for display; its short side is `size` or more."""
    is_clip = _is_video(source) or _is_album(source)
    frames = list(_frames(source, 3, size)) if is_clip else [open_image(source, size_hint=size)]
    return frames[len(frames) // 2]


def _is_video(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and os.fspath(source).lower().endswith(VIDEOS)


def _is_album(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and os.path.isdir(source)


def _frames(source: Any, frames: int, size: int) -> Iterator[Image.Image]:
    """At most `frames` images, one at a time."""
    if _is_video(source):
        yield from _video_frames(source, frames)
    elif _is_album(source):
        files = album_images(source)
        if not files:
            raise ImageError(f"{source}: no image in this folder; a pattern such as {source}/*.mp4 names clips")
        for i in evenly_spaced(len(files), frames):
            yield open_image(files[i], size_hint=size)
    else:
        for i in evenly_spaced(_frame_count(source), frames):
            yield open_image(source, size_hint=size, frame=i)


def _frame_count(source: Any) -> int:
    """Number of frames of an animated image; 1 for anything else, even if :func:`open_image` rejects it."""
    if isinstance(source, (str, os.PathLike)):
        with (
            image_errors(source),
            contextlib.suppress(UnidentifiedImageError),
            open_file(source) as file,
            Image.open(file, formats=ANIMATED) as image,
        ):
            return getattr(image, "n_frames", 1)
    return 1


def _video_frames(path: str | os.PathLike, frames: int) -> Iterator[Image.Image]:
    """Upright frames of a video, decoded in order; other frames are dropped at once."""
    try:
        import av
    except ImportError:
        raise ImageError(f"{path}: videos are read with PyAV: {install_hint('video')}") from None
    options, place = {"format_whitelist": CONTAINERS}, -1
    with image_errors(path), open_file(path) as file:
        with av.open(file, "r", options=options) as clip:
            if not clip.streams.video:
                raise ImageError(f"{path}: has sound but no images; name another file")
            # The number of frames in a container may be missing or wrong. Counting packets decodes nothing.
            packets = clip.demux(clip.streams.video[0])
            wanted = evenly_spaced(sum(packet.size > 0 and not packet.is_discard for packet in packets), frames)
        file.seek(0)
        with av.open(file, "r", options=options) as clip:
            clip.streams.video[0].thread_type = "AUTO"
            for place, frame in enumerate(clip.decode(video=0)):
                if place in wanted:
                    if frame.width * frame.height > MAX_PIXELS:
                        raise Image.DecompressionBombError
                    yield frame.to_image().rotate(frame.rotation, expand=True)
                if place >= wanted[-1]:
                    break
    if place < 0:
        raise ImageError(f"{path}: no frame can be decoded; it is damaged or cut short, fetch it again")
