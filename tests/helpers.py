"""What the tests share: a tiny COCO-style set, a small model and its training, and a check of messages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioner.config import ModelConfig
from captioner.data.dataset import Batch
from captioner.data.vocabulary import END, Vocabulary
from captioner.errors import UserError
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder, weights_digest

RATES = {field.name for field in fields(ModelConfig) if "dropout" in field.name}
NO_DROPOUT = dict.fromkeys(sorted(RATES - {"cell_dropout"}), 0.0)  # cells are for attention only
ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints" / "captioner.safetensors"
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "yellow": (230, 220, 40),
}
SHADES = [(a, b) for a in COLORS for b in COLORS if a != b]  # 30 images that can be told apart


def draw(path: Path, number: int) -> None:
    """An image of 32 × 32 pixels: a square of one colour on another."""
    front, back = SHADES[number % len(SHADES)]
    image = Image.new("RGB", (32, 32), COLORS[back])
    image.paste(COLORS[front], (6, 6, 22, 22))
    image.save(path)


def captions_of(number: int, count: int) -> list[str]:
    """The first `count` of five captions, of 3 to 7 words, of the image."""
    front, back = SHADES[number % len(SHADES)]
    return [
        f"a {front} square on {back}",
        f"a {front} square",
        f"there is a square that is {front}",
        f"{back} around a {front} square",
        f"a small square in {front} on {back}",
    ][:count]


@dataclass(frozen=True)
class Coco:
    """Files of a set; `options` are those of ``captioner train`` that name it."""

    folder: Path

    def annotations(self, split: str) -> Path:
        return self.folder / f"captions_{split}.json"

    def images(self, split: str) -> Path:
        return self.folder / split

    def data(self) -> dict[str, str]:
        parts = {split: (self.annotations(split), self.images(split)) for split in ("train", "val")}
        named = {f"{s}{end}": str(p) for s, pair in parts.items() for end, p in zip(("", "_images"), pair, strict=True)}
        return {**named, "feature_cache": str(self.folder / "features")}

    def options(self) -> list[str]:
        return [word for name, value in self.data().items() for word in (f"--data.{name}", value)]


def write_set(folder: Path, train: int = 12, val: int = 6, captions=None) -> Coco:
    """Write `train` + `val` images; image n has n % 5 + 1 captions, or `captions(n)`."""
    coco, number = Coco(folder), 0
    for split, count in (("train", train), ("val", val)):
        coco.images(split).mkdir(parents=True)
        images, annotations = [], []
        for _ in range(count):
            name = f"{number:03}.png"
            draw(coco.images(split) / name, number)
            images.append({"id": 100 + number, "file_name": name})
            for text in captions(number) if captions else captions_of(number, number % 5 + 1):
                annotations.append({"id": len(annotations), "image_id": 100 + number, "caption": text})
            number += 1
        coco.annotations(split).write_text(json.dumps({"images": images, "annotations": annotations}))
    return coco


WORDS = ["a", "red", "green", "blue", "square", "on", "circle", "ein", "Mädchen"]


def make_captioner(trained: int = 0, **options) -> Captioner:
    """Random weights, with words that depend on the image."""
    torch.manual_seed(1)
    options = {"image_size": 32, "hidden_size": 16, "embedding_size": 16, **options}
    config = ModelConfig("resnet18", second_size=0, trainable_layers=trained, **options)
    captioner = Captioner(config, Vocabulary(WORDS), Encoder(config), weights_digest("resnet18"))
    with torch.no_grad():
        captioner.decoder.project.weight *= 50
        captioner.decoder.output.weight *= 10
        captioner.decoder.output.bias[END] -= 1
    return captioner.eval()


SMALL = {
    "model.encoder": "resnet18",
    "model.image_size": 32,
    "model.second_size": 0,
    "model.hidden_size": 16,
    "model.embedding_size": 16,
    "data.min_count": 1,
    "data.batch_size": 8,
    "data.workers": 0,
    "search.beam": 2,
    "search.max_length": 8,
    "train.epochs": 2,
    "train.ema_decay": 0,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.log_every_n_steps": 1,
}


def typed(options: Mapping[str, object]) -> list[str]:
    """Options by name as words of the command line."""
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def arguments(coco: Coco, out: Path, *options) -> list[str]:
    """``train`` of the smallest model with its options; later ones win."""
    return [str(word) for word in ("train", *typed(SMALL), *coco.options(), "--output", out, *options)]


def train(coco: Coco, out: Path, *options) -> int:
    """Run it in this process."""
    from captioner.__main__ import main

    return main(arguments(coco, out, *options))


def equal_batches(a: Batch, b: Batch) -> bool:
    """Whether two batches have the same tensors."""
    parts = zip((*a[:-1], *a.layout[:-1]), (*b[:-1], *b.layout[:-1]), strict=True)
    return a.layout.sizes == b.layout.sizes and all(torch.equal(one, two) for one, two in parts)


def is_one_line(text: str, *parts: str) -> bool:
    """One line that says all of `parts`."""
    return len(text.strip().splitlines()) == 1 and all(part in text for part in parts)


def refused(call, *arguments, says=()) -> str:
    """The UserError of a call: one printable line that says all of `says`."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert is_one_line(line, *says), line
    assert line.isprintable()
    return line


def random_network(name: str) -> torch.nn.Module:
    """The whole network with random weights, also in its norms."""
    from torchvision.models import get_model

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_model(name, weights=None, **options)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()
