"""Start-up time and memory of `captioner train` on a set of COCO's size, and its memory over epochs.

The set has as many images and captions as COCO 2017: 118,000 × 5 to train on, 5,000 × 5 to validate. Its annotation
files have COCO's fields, its words Zipf's frequencies; the images are files without content, and their features (8 kB
each, the default encoder) are made up, since neither is read before the first batch. Ours is CaptionData, the
references and the first batch, with cached features. The floor is json.load of both files and os.stat of every
image. Each side has a separate process.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ratios import caption_lengths, rounds_argument

SPLITS = {"train": 118_000, "val": 5_000}
EACH = 5
WORDS = 27_000
SECONDS, GROWTH, FLAT = 5.0, 1000, 30  # limits: seconds, MB of the start, MB over the epochs


def write_annotations(folder: Path, scale: float, photos: Sequence[Path] = ()) -> None:
    """captions_SPLIT.json, and the images' files in SPLIT/: links to `photos` in turn, or files without content."""
    random = np.random.default_rng(0)
    words = np.array(["".join(chr(97 + c) for c in random.integers(0, 26, 2 + n % 9)) for n in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    for split, number in SPLITS.items():
        number = round(number * scale)
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        lengths = caption_lengths(number * EACH, random)
        drawn = words[random.choice(WORDS, lengths.sum(), p=frequency / frequency.sum())].tolist()
        ends = np.cumsum(lengths)
        for i in range(number):
            name = f"{i:012}.jpg"
            if photos:
                os.link(photos[i % len(photos)], folder / split / name)
            else:
                with open(folder / split / name, "wb") as file:
                    file.truncate(150_000 + i)  # sparse
            url = f"http://images.example.org/{split}2017/{name}"
            images.append(
                {"license": 3, "file_name": name, "coco_url": url, "height": 427, "width": 640}
                | {"date_captured": "2013-11-14 17:02:52", "flickr_url": url, "id": i}
            )
            for c in range(i * EACH, (i + 1) * EACH):
                text = " ".join(drawn[ends[c] - lengths[c] : ends[c]]).capitalize() + "."
                annotations.append({"image_id": i, "id": c, "caption": text})
        order = random.permutation(len(annotations))  # as in COCO, captions of an image are far apart
        content = {"info": {}, "images": images, "annotations": [annotations[c] for c in order], "licenses": []}
        (folder / f"captions_{split}.json").write_text(json.dumps(content))


def memory() -> dict[str, float]:
    """MB of this process: its own memory, that of mapped files (page cache), and the peak of both."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile", "VmHWM")}


def ours(folder: Path, held: int, epochs: int) -> dict[str, float]:
    """Seconds and MB of the start; MB after each epoch."""
    import torch

    from captioner.config import DataConfig, ModelConfig
    from captioner.models.encoder import weights_digest
    from captioner.training import datamodule, split

    random = np.random.default_rng(0)
    block = random.standard_normal((1000, 4096)).astype(np.float16)

    def made_up(encoder: object, paths: list[Path], *_: object, **__: object) -> object:
        for first in range(0, len(paths), len(block)):
            yield block[: len(paths) - first]

    split.extract_features = made_up  # type: ignore[assignment]
    names = {f"{s}{e}": str(folder / p) for s in SPLITS for e, p in (("", f"captions_{s}.json"), ("_images", s))}
    config = DataConfig(**names, feature_cache=str(folder / "features"))  # type: ignore[arg-type]
    model = ModelConfig()
    weights_digest(model.encoder)  # remembered; a minor cost of every command
    torch.zeros(1).sum()
    gc.collect()
    before, began = memory(), time.perf_counter()
    data = datamodule.CaptionData(config, model)
    for part, captions in ((data.train, data.train_set), (data.val, data.val_set)) if held else ():
        part.hold(torch.device("cpu"))
        captions.read = part.read
    references = data.references()
    batches = iter(data.train_dataloader())
    next(batches)
    result = {"seconds": time.perf_counter() - began, "captions": float(len(data.train_set.lengths))}
    gc.collect()
    after = memory()
    result["MB"], result["peak MB"] = after["RssAnon"] - before["RssAnon"], after["VmHWM"] - before["VmHWM"]
    assert references
    for epoch in range(epochs):
        data.train_set.epoch = epoch
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        rows = 0
        for batch in loader:
            rows += len(data.on_after_batch_transfer(batch, 0).images)
        gc.collect()
        now = memory()
        result[f"MB after epoch {epoch + 1}"] = now["RssAnon"] - before["RssAnon"]
        result[f"mapped MB after epoch {epoch + 1}"] = now["RssFile"] - before["RssFile"]
    return result


def floor(folder: Path) -> dict[str, float]:
    """Seconds of reading the JSON and the size of every file."""
    began = time.perf_counter()
    for split in SPLITS:
        content = json.loads((folder / f"captions_{split}.json").read_bytes())
        for image in content["images"]:
            os.stat(folder / split / image["file_name"])
    return {"seconds": time.perf_counter() - began}


SIDES: dict[str, Callable[..., dict[str, float]]] = {"ours": ours, "floor": floor}


def in_a_process(side: str, *arguments: object) -> dict[str, float]:
    """The measurements of a side, in a fresh process."""
    command = [sys.executable, __file__, "--side", side, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> bool:
    """Print the figures; return whether they are within the limits."""
    if "--side" in sys.argv:
        side, folder, *numbers = sys.argv[2:]
        print(json.dumps(SIDES[side](Path(folder), *map(int, numbers))))
        return True
    parser = rounds_argument(__doc__, 3)
    parser.add_argument("--epochs", type=int, default=3, help="epochs over the features")
    parser.add_argument("--share", type=float, default=1.0, help="of COCO's size, for a quick run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, half = Path(name, "whole"), Path(name, "half")
        for place, scale in ((folder, options.share), (half, options.share / 2)):
            write_annotations(place, scale)
            first = in_a_process("ours", place, 0, 0)
            print(f"{scale:.0%} of the set, {first['captions']:,.0f} captions: first time {first['seconds']:.1f} s")
        starts, floors = [], []
        for _ in range(options.rounds):
            starts.append(in_a_process("ours", folder, 0, 0))
            floors.append(in_a_process("floor", folder))
        smaller = in_a_process("ours", half, 0, 0)
        held = in_a_process("ours", folder, 1, 0)
        epochs = in_a_process("ours", folder, 0, options.epochs)
    seconds, mb = (float(np.median([start[key] for start in starts])) for key in ("seconds", "MB"))
    least = float(np.median([one["seconds"] for one in floors]))
    print(f"start: {seconds:.2f} s, floor {least:.2f} s, ratio {seconds / least:.2f}")
    print(f"memory: {mb:.0f} MB more than before, {starts[0]['peak MB']:.0f} MB at the most;", end=" ")
    print(f"{(mb - smaller['MB']) / (options.share * SPLITS['train'] / 2 / 100_000):.0f} MB per 100,000 images")
    print(f"with the features in memory: {held['MB']:.0f} MB, start {held['seconds']:.2f} s")
    after = [epochs[f"MB after epoch {n + 1}"] for n in range(options.epochs)]
    mapped = [epochs[f"mapped MB after epoch {n + 1}"] for n in range(options.epochs)]
    print(f"epochs over the map: own MB {[round(x) for x in after]}, mapped (page cache) {[round(x) for x in mapped]}")
    grown = after[-1] - after[0]
    limits = {"s": (seconds, SECONDS), "MB": (mb, GROWTH), "MB over the epochs": (grown, FLAT)}
    for unit, (value, limit) in limits.items():
        print(f"{value:.1f} {unit} (limit <= {limit:g}): {'ok' if value <= limit else 'MISSED'}")
    return all(value <= limit for value, limit in limits.values())


if __name__ == "__main__":
    sys.exit(not main())
