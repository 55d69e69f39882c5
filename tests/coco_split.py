"""COCO splits of smooth images that are unlike each other, for the tests of duplicates and of conversions."""

import json

import numpy as np
from PIL import Image


def scene(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A smooth image unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_split(folder, name, pixels, start):
    """A COCO split of {file name: image}; returns the options that name it."""
    images, annotations = [], []
    (folder / name).mkdir(parents=True)
    for number, (file, image) in enumerate(pixels.items(), start):
        image.save(folder / name / file, quality=95)
        images.append({"id": number, "file_name": file, "width": image.width, "height": image.height})
        for text in (f"picture {number} of a dog", "one more dog"):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": text})
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file, folder / name
