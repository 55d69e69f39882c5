"""The time to open a 12-megapixel JPEG and resize it for the encoder, against that of its codec alone.

Ours is open_image of captioner.data.images with the side that is needed, then eval_transform. Draft is Pillow's own
decoding at the smallest of 1/1, 1/2, 1/4 and 1/8 that is large enough, and nothing else; full is its decoding of all
pixels.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from ratios import median, rounds_argument, take_turns, verdict

from captioner.data.images import eval_transform, open_image

WIDTH, HEIGHT, SIDE = 4000, 3000, 224
LIMIT = 1.3


def photograph() -> bytes:
    """A JPEG with about the detail of a photograph: noise at several scales."""
    random = np.random.default_rng(0)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0, dtype=np.float32)
    for cells, contrast in ((4, 60), (16, 30), (64, 15), (1000, 6)):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        large = noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += (np.asarray(large, dtype=np.float32) / 127.5 - 1) * contrast
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> bool:
    """Print the ratios; whether that to the codec's draft is within the limit."""
    rounds = rounds_argument(__doc__, 20).parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo.jpg")
        path.write_bytes(photograph())

        def ours() -> None:
            eval_transform(open_image(path, size_hint=SIDE), SIDE)

        def draft() -> None:
            with Image.open(path) as image:
                image.draft(None, (SIDE, SIDE))
                image.load()

        def full() -> None:
            with Image.open(path) as image:
                image.load()

        times = take_turns({"draft": draft, "ours": ours, "full": full}, rounds)
        megabytes = path.stat().st_size / 1e6
    for side, values in times.items():
        print(f"{side:6} {1000 * median(values):6.1f} ms")
    saved = median(times["full"]) / median(times["ours"])
    print(f"{WIDTH} x {HEIGHT}, {megabytes:.1f} MB: {saved:.1f} times as fast as decoding all pixels")
    return verdict("ours / the codec's draft", times["ours"], times["draft"], "<=", LIMIT)


if __name__ == "__main__":
    sys.exit(not main())
