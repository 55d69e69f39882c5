"""Feed the readers with hostile bytes for so many seconds: what comes of each try is a result or an error of one line.

    python tests/faults/fuzz.py images --seconds 120
    python tests/faults/fuzz.py annotations --seconds 120 --atheris    # guided by coverage: pip install atheris

Whole files are damaged at random (bytes changed, cut out, doubled, numbers made extreme; in JSON values put in the
place of others), and an audit hook of Python watches meanwhile: nothing is run, nothing is written outside the folder
of the try, and nothing is read outside it but libraries. Prints how many tries there were and how many were refused.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30, -(2**63), 2**31, "", " ", "a", [], {}, [[]]),
    *("../../etc/passwd", "/etc/passwd", "..\\..\\etc", "a\0b", "\ud800", "\u202etxt.gpj", "\x1b[31mred\x1b[0m", "\n"),
    *("a" * 100_000, "a " * 50_000, "א ב ג", "é" * 1000, "%s%n{0}", "<script>", "'; --", "a.png/../../b", "~", "."),
]
WATCHED = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn"}
WATCHED |= {"socket.connect", "socket.getaddrinfo", "socket.sendto", "ctypes.dlopen"}
CHANGED = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}


class Watch:
    """An audit hook: what the code under test must not do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on, self.broken = f"{folder}{os.sep}", False, list[str]()
        self.read = (str(ROOT), sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), "/usr", "/proc", "/sys")
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python."""
        if not self.on:
            return
        if event in WATCHED:
            self.broken.append(f"{event} {arguments!r:.200}")
        if event in CHANGED:
            paths = [os.path.realpath(os.fsdecode(each)) for each in arguments if isinstance(each, (str, bytes))]
            if not all(path.startswith(self.folder) for path in paths):
                self.broken.append(f"{event} {arguments!r:.200}")
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path, mode, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[1], arguments[2]
            writes = any(c in (mode or "") for c in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
            inside = path.startswith(self.folder) or path in ("/dev/null", "/dev/urandom")
            if not inside and (writes or not path.startswith(self.read)):
                self.broken.append(f"open {path} {mode} {flags}")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few changes anywhere."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        place, length = chance.randrange(len(found) + 1), chance.choice((1, 2, 4, 16, 256))
        kind = chance.randrange(6)
        if kind == 0:
            found[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del found[place : place + length]
        elif kind == 2:
            found[place:place] = found[place : place + length]
        elif kind == 3:
            found[place : place + 4] = struct.pack(chance.choice("<>") + "I", chance.choice((0, 1, 2**31, 2**32 - 1)))
        elif kind == 4:
            found = found[: max(1, place)]
        else:
            found[place:place] = chance.randbytes(length)
    return bytes(found)


def replaced(data: Any, chance: random.Random) -> Any:
    """A JSON value in which some values are hostile ones, and some keys come twice, under other names or not at all."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place, key, inner = None, None, data
        while isinstance(inner, (dict, list)) and inner and (place is None or chance.random() < 0.8):
            place, key = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = place[key]
        kind = chance.randrange(4)
        if place is None:
            data = chance.choice(HOSTILE)
        elif kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[str(chance.choice(HOSTILE))[:50]] = place.pop(key)
        else:
            place[key] = chance.choice(HOSTILE)
    return data


def seeds_of_images() -> list[bytes]:
    from PIL import Image

    image = Image.effect_noise((40, 30), 60).convert("RGB")
    found = []
    for kind, options in [
        ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
        *(("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {}), ("PPM", {})),
        *(("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {}), ("JPEG2000", {}), ("AVIF", {})),
    ]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    image.convert("CMYK").save(buffer, "JPEG", icc_profile=b"\0" * 200)
    frames = io.BytesIO()
    image.save(frames, "GIF", save_all=True, append_images=[image.rotate(90)] * 3)
    deep = io.BytesIO()
    Image.new("I;16", (9, 9), 700).save(deep, "PNG")
    return [*found, buffer.getvalue(), frames.getvalue(), deep.getvalue(), b"<svg xmlns='http://www.w3.org/2000/svg'/>"]


def image(data: bytes, folder: Path) -> None:
    """Open it, and have it resized."""
    from captioner.data.images import eval_transform, open_image

    assert eval_transform(open_image(data, 32), 32).shape == (3, 32, 32)


def seeds_of_annotations() -> list[Any]:
    images = [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in range(3)]
    captions = [{"id": n, "image_id": n % 3, "caption": f"an image of {n}"} for n in range(6)]
    sentences = [{"raw": "a dog", "tokens": ["a", "dog"], "sentid": 1, "imgid": 0}]
    return [
        {"images": images, "annotations": captions, "info": {}, "licenses": []},
        {"images": [{"filename": f"{n}.png", "imgid": n, "split": "train", "sentences": sentences} for n in range(3)]},
        [{"image_id": n, "caption": "a dog"} for n in range(3)],
        [{"file_name": f"{n}.png", "captions": ["a", "b"], "split": "train"} for n in range(3)],
        {str(n): ["a dog", "a cat"] for n in range(3)},
        b"0.png#0\ta dog\n1.png#1\tA cat .\n",
        b'image,caption\n0.png,a dog\n1.png,"a, cat"\n',
        b"file_name\tcaption\tsplit\n0.png\ta dog\ttrain\n",
        "file_name,caption\n0.png,a dog\n".encode("utf-16"),
        b'<annotations><image id="0" name="0.png"><tag label="a"><attribute name="caption">a dog</attribute></tag>'
        b"</image></annotations>",
        [
            {
                "data": {"image": "/data/upload/1/0f3a9b12-0.png"},
                "annotations": [{"result": [{"type": "textarea", "value": {"text": ["a dog"]}}]}],
            }
        ],
        [{"image": "0.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a dog"}]}],
        [[{"generated_text": "a dog"}], [{"generated_text": "a cat"}]],
        b"0.png\ta dog\t-1.5\n0.png\ta cat\t-2.5\n",
    ]


def annotations(data: bytes, folder: Path) -> None:
    """Read it as everything that it can be: examples, references, results, for a vocabulary, metrics and a report."""
    from captioner.data.annotations import read_examples, read_references
    from captioner.data.vocabulary import Vocabulary
    from captioner.datasets.inspect import InspectedSplit, inspect
    from captioner.metrics import ptb_tokenize
    from captioner.metrics.result_files import match_results, read_results

    endings = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".token")
    ending = ".json" if data[:1] in (b"[", b"{") else endings[zlib.crc32(data) % len(endings)]
    ending = ".xml" if data[:1] == b"<" else ending
    file = folder / f"data{ending}"
    file.write_bytes(data)
    answers: list[Callable[[], Any]] = [
        lambda: read_examples(file, folder / "images", skip_bad=bool(len(data) % 2)),
        lambda: read_references(file),
        lambda: read_results(file),
    ]
    refused: list[BaseException] = []
    examples: Any = None
    references: Any = None
    for number, answer in enumerate(answers):
        try:
            found = answer()
            examples = found[0] if number == 0 else examples
            references = found if number == 1 else references
            if number == 2 and references:
                match_results(references[0], found, references[1])
        except Exception as error:
            one_line(error)
            refused.append(error)
    for example in examples or ():
        assert os.path.realpath(example.path).startswith(os.path.realpath(folder)), example
        assert all(text == text.encode().decode() for text in example.captions)
    if examples:
        vocabulary = Vocabulary.build(text for example in examples for text in example.captions)
        ptb_tokenize(examples[0].captions[0])
        vocabulary.encode(vocabulary.split(examples[0].captions[0]))
        inspect([InspectedSplit("train", str(file), "coco", examples, [], {})], read_images=False)
    if len(refused) == len(answers):
        raise refused[0]


def seeds_of_checkpoints() -> list[Any]:
    """Of both kinds: (header, tensors) to be changed; and bytes."""
    import torch
    from helpers import make_captioner

    model = make_captioner()
    return [(model.header(), model.weights(), torch)]


def written(header: Any, weights: Any, folder: Path, slim: bool) -> bytes:
    """The bytes of a checkpoint."""
    import torch
    from safetensors.torch import save

    if slim:
        tensors = {name: value.contiguous() for name, value in weights.items() if value.layout is torch.strided}
        return save(tensors, metadata={"captioner": json.dumps(header)})
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"model.{n}": v for n, v in weights.items()}, "captioner": header}, buffer)
    return buffer.getvalue()


def checkpoint(data: bytes, folder: Path) -> None:
    """Open it and, if it opens, caption with it."""
    import torch

    from captioner.models.captioner import Captioner

    file = folder / ("model.ckpt" if data[:2] == b"PK" or zlib.crc32(data) % 8 == 0 else "model.safetensors")
    file.write_bytes(data)
    model = Captioner.load(file)
    model.search(torch.zeros((1, 3, model.image_size, model.image_size), dtype=torch.uint8), search_config())


def search_config() -> Any:
    """A short search."""
    from captioner.config import SearchConfig

    return SearchConfig(beam=2, max_length=5)


def shard(data: bytes, folder: Path) -> None:
    """Read a tar of images and captions, and open the images."""
    from captioner.data.annotations import read_examples
    from captioner.data.images import open_image

    file = folder / "data.tar"
    file.write_bytes(data)
    for example in read_examples(file, skip_bad=True)[0]:
        open_image(example.path, 32)


def seeds_of_shards() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for n in range(3):
            for name, content in ((f"{n}.png", seeds_of_images()[2]), (f"{n}.txt", b"a dog\n")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return [buffer.getvalue()]


def seeds_of_parquet() -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    found = []
    images = seeds_of_images()[:3]
    structs = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)]
    for column in (structs, images, ["0.png", "1.png", "2.png"]):
        buffer = io.BytesIO()
        table = pyarrow.table(
            {"image": column, "caption": [["a dog", "a cat"], ["a cow"], ["an egg"]], "image_id": [4, 5, 6]}
        )
        parquet.write_table(table, buffer, row_group_size=2)
        found.append(buffer.getvalue())
    return found


def parquet_file(data: bytes, folder: Path) -> None:
    """Read it as captioned images, and as images to caption, and open the images."""
    from captioner.data.annotations import read_examples
    from captioner.data.images import open_image
    from captioner.data.inputs import find_inputs

    file = folder / "data.parquet"
    file.write_bytes(data)
    for example in read_examples(file, folder / "images", skip_bad=True)[0]:
        open_image(example.path, 32)
    for image in find_inputs([str(file)]):
        if not isinstance(image, Path):  # a path may be anywhere
            open_image(image, 32)


def seeds_of_videos() -> list[bytes]:
    import av
    import numpy as np

    found = []
    for kind, codec in (("mp4", "mpeg4"), ("avi", "mjpeg"), ("matroska", "mpeg4")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=kind) as out:
            stream = out.add_stream(codec, rate=5)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for n in range(6):
                pixels = np.full((48, 64, 3), 40 * n, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(stream.encode())
        found.append(buffer.getvalue())
    return found


def video(data: bytes, folder: Path) -> None:
    """Read four frames of it."""
    from captioner.data.clips import load_pixels

    file = folder / "clip.mp4"
    file.write_bytes(data)
    assert load_pixels(file, 32, 4).shape == (4, 3, 32, 32)


def export(folder: Path) -> Path:
    """A small model as ONNX."""
    from helpers import make_captioner

    from captioner.deploy.export import export_graphs

    export_graphs(make_captioner(), "onnx", folder / "onnx")
    return folder / "onnx"


class Graphs:
    """An exported model, whose config or step is damaged."""

    whole: dict[str, bytes] | None = None

    def __call__(self, data: bytes, folder: Path) -> None:
        """Open it with the bytes as one of its files and, if it opens, caption with it."""
        import numpy as np

        from captioner.deploy.onnx_runner import Runner

        if self.whole is None:  # not watched
            onnx = export(folder)
            self.whole = {name: (onnx / name).read_bytes() for name in ("config.json", "step.onnx")}
        name = "config.json" if data[:1] == b"{" else "step.onnx"
        for each, content in {**self.whole, name: data}.items():
            (folder / "onnx" / each).write_bytes(content)
        model = Runner(folder / "onnx", threads=1)
        size = model.config["image_size"]
        model.search(np.zeros((1, 3, size, size), np.uint8), beam=2, max_length=5)


def seeds_of_graphs() -> list[Any]:
    folder = export(Path(tempfile.mkdtemp()))
    return [json.loads((folder / "config.json").read_text()), (folder / "step.onnx").read_bytes()]


def one_line(error: BaseException) -> None:
    """Raise unless it is what a user can fix, in one line."""
    from captioner.errors import UserError

    if not isinstance(error, UserError) or len(str(error).splitlines()) != 1:
        raise error


def json_bytes(value: Any) -> bytes:
    """As JSON, with NaN and lone surrogates as Python writes them."""
    return json.dumps(value).encode()


class Requests:
    """The server in this process, asked over HTTP."""

    def __init__(self) -> None:
        from fastapi.testclient import TestClient
        from helpers import make_captioner

        from captioner.config import SearchConfig, ServeConfig
        from captioner.deploy.server import make_app

        self.client = TestClient(make_app(make_captioner(), SearchConfig(beam=2), ServeConfig(), "tiny"))
        self.client.__enter__()

    def __call__(self, data: bytes, folder: Path) -> None:
        """Send the bytes as an image, as a form and as JSON: nothing is answered by a 5xx."""
        from captioner.errors import UserError

        kinds = ("image/jpeg", "application/json", "multipart/form-data; boundary=x", "text/plain", "")
        codes = [
            self.client.post("/caption", content=data, headers={"content-type": kind}).status_code for kind in kinds
        ]
        codes.append(self.client.post("/caption", files={"file": ("../x.jpg", data)}).status_code)
        assert all(code < 500 for code in codes), codes
        if all(code >= 400 for code in codes):
            raise UserError("refused")


TARGETS: dict[str, tuple[Callable[[], list[Any]], Any]] = {
    "images": (seeds_of_images, image),
    "annotations": (seeds_of_annotations, annotations),
    "checkpoints": (seeds_of_checkpoints, checkpoint),
    "shards": (seeds_of_shards, shard),
    "parquet": (seeds_of_parquet, parquet_file),
    "videos": (seeds_of_videos, video),
    "graphs": (seeds_of_graphs, Graphs),
    "requests": (seeds_of_images, Requests),
}


def next_try(seed: Any, folder: Path, chance: random.Random) -> bytes:
    """A hostile file made of one of the seeds."""
    if isinstance(seed, bytes):
        return damaged(seed, chance)
    if isinstance(seed, tuple):
        header, weights, torch = seed
        weights = dict(weights)
        kind = chance.randrange(4)
        if kind:
            header = replaced(header, chance)
        if kind == 2:
            name = chance.choice(list(weights))
            one = weights[name]
            weights[name] = chance.choice(
                (
                    one.int(),
                    one.double(),
                    one[:1],
                    one.flatten(),
                    one * float("nan"),
                    torch.empty(0),
                    torch.ones(()),
                    one.bool(),
                )
            )
        data = written(header, weights, folder, slim=chance.random() < 0.7)
        return damaged(data, chance) if kind == 0 else data
    return json_bytes(replaced(seed, chance)) if chance.random() < 0.8 else damaged(json_bytes(seed), chance)


def as_bytes(seed: Any, folder: Path) -> bytes:
    """The file of a seed, whole."""
    if isinstance(seed, bytes):
        return seed
    return written(*seed[:2], folder, slim=True) if isinstance(seed, tuple) else json_bytes(seed)


def run() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, begun with the same files")
    options = parser.parse_args()
    if options.atheris:
        import atheris

        with atheris.instrument_imports(include=["captioner", "PIL", "safetensors", "tarfile", "json"]):
            import captioner.datasets.inspect
            import captioner.models.captioner  # noqa: F401
    folder = Path(os.path.realpath(tempfile.mkdtemp()))
    (folder / "images").mkdir()
    (folder / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    os.environ["TORCH_HOME"] = str(folder / "torch")
    if options.reader in ("checkpoints", "requests", "graphs"):
        import torch
        from torchvision.models import ResNet18_Weights, resnet18

        name = ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
        torch.save(resnet18(weights=None).state_dict(), folder / "torch" / "hub" / "checkpoints" / name)
    make_seeds, target = TARGETS[options.reader]
    seeds = make_seeds()
    for n, data in enumerate(seeds_of_images()[:3]):
        (folder / "images" / f"{n}.png").write_bytes(data)
    target = target() if isinstance(target, type) else target
    for seed in seeds:  # what libraries do at their first use is their own business
        with contextlib.suppress(Exception):
            target(as_bytes(seed, folder), folder)
    watch = Watch(folder)
    chance, tries, refused, slowest = random.Random(options.seed), 0, 0, 0.0

    def attempt(data: bytes) -> None:
        nonlocal tries, refused, slowest
        began = time.monotonic()
        try:
            watch.on = True
            target(data, folder)
        except Exception as error:
            watch.on = False
            try:
                one_line(error)
            except BaseException:
                (Path.cwd() / "found.bin").write_bytes(data)
                print(f"try {tries}: see found.bin", flush=True)
                raise
            refused += 1
        finally:
            watch.on = False
        if watch.broken:
            (Path.cwd() / "found.bin").write_bytes(data)
            sys.exit(f"try {tries} did what it must not: {watch.broken[:3]}; see found.bin")
        tries, slowest = tries + 1, max(slowest, time.monotonic() - began)

    if options.atheris:
        corpus = folder / "corpus"
        corpus.mkdir()
        for n, seed in enumerate(seeds):
            (corpus / str(n)).write_bytes(as_bytes(seed, folder))
        atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={options.seconds}", "-timeout=60"], attempt)
        atheris.Fuzz()
        return
    until = time.monotonic() + options.seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < until:
        attempt(next_try(chance.choice(seeds), folder, chance))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{options.reader}: {tries:,} tries, {refused:,} refused in one line, {tries - refused:,} taken; nothing run, "
        f"nothing written or read elsewhere; the slowest took {slowest:.1f} s, memory grew by {grown:.0f} MB"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    run()
