"""Files made to do harm: each is opened, or refused in one line, with little memory; and what fuzzing has found."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("resource", reason="the limits of memory are POSIX's")
import resource

import torch
from helpers import ROOT, is_one_line, make_captioner, refused
from PIL import Image

from captioner.data import shards
from captioner.data.annotations import MAX_CHARACTERS, Example, read_examples, read_references
from captioner.data.features import FeatureFile, write_features
from captioner.data.images import open_image
from captioner.datasets.convert import to_coco, to_webdataset
from captioner.deploy.onnx_runner import check_config
from captioner.errors import UserError
from captioner.inference.parts import PartFolder
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import load_pickle, read_checkpoint, save_slim
from captioner.models.init_from import init_from

sys.path.append(str(ROOT / "tests" / "faults"))
import fuzz

# ---- checkpoints

LIES = {
    "a state of a terabyte": (lambda h, w: h["model"].update(hidden_size=10**9), "fit"),
    "a state of gigabytes": (lambda h, w: h["model"].update(hidden_size=30_000), "expected torch.float32"),
    "a size beyond 64 bits": (
        lambda h, w: h["model"].update(embedding_size=10**30),
        "embedding_size is 1000000000000000000000000000000: expected a smaller number",
    ),
    "a size in letters": (lambda h, w: h["model"].update(hidden_size="16"), "hidden_size is '16'"),
    "a size with a point": (lambda h, w: h["model"].update(hidden_size=16.0), "hidden_size is '16.0'"),
    "a size that is true": (lambda h, w: h["model"].update(layers=True), "layers is 'True'"),
    "an encoder elsewhere": (lambda h, w: h["model"].update(encoder="../../etc/passwd"), "expected resnet50_v1"),
    "an encoder of a hub": (lambda h, w: h["model"].update(encoder="timm:hf_hub:evil/x"), "expected resnet50_v1"),
    "an encoder that is not inside": (lambda h, w: h.update(encoder_inside=True), "missing ['encoder."),
    "a large encoder that is not inside": (
        lambda h, w: (h["model"].update(encoder="vit_b_16", image_size=224), h.update(encoder_inside=True)),
        "missing ['encoder.",
    ),
    "a digest of two lines": (lambda h, w: h.update(encoder_digest="a\nb"), "other weights of resnet18 (a b)"),
    "a digest that is none": (lambda h, w: h.pop("encoder_digest"), "encoder_digest is 'None'"),
    "words that are numbers": (lambda h, w: h.update(vocabulary=list(range(9))), "'0' is not a word"),
    "a word that is none": (lambda h, w: h["vocabulary"].__setitem__(2, None), "'None' is not a word"),
    "an escape as a word": (lambda h, w: h["vocabulary"].__setitem__(2, "\x1b[2J"), "is not a word"),
    "a line break in a word": (lambda h, w: h["vocabulary"].__setitem__(2, "a\nb"), "is not a word"),
    "a word from right to left": (lambda h, w: h["vocabulary"].__setitem__(2, "\u202egnp"), "is not a word"),
    "END as a word": (lambda h, w: h["vocabulary"].__setitem__(2, "<end>"), "twice"),
    "words in a string": (lambda h, w: h.update(vocabulary="abcdefghi"), "a list and a string"),
    "a model that is a list": (lambda h, w: h.update(model=[1]), "are not an object"),
    "weights that are no numbers": (lambda h, w: w.update({n: v * torch.nan for n, v in w.items()}), "infinite or NaN"),
    "one infinite weight": (lambda h, w: w["decoder.output.bias"].__setitem__(3, torch.inf), "infinite or NaN"),
    "whole numbers as weights": (lambda h, w: w.update({n: v.int() for n, v in w.items()}), "torch.int32"),
    "a weight of another shape": (lambda h, w: w.update({"decoder.output.bias": torch.ones(2, 3)}), "[2, 3]"),
}


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
@pytest.mark.parametrize("lie", LIES)
def test_a_checkpoint_that_lies_is_refused_before_memory_is_taken(captioner, tmp_path, lie, kind):
    change, says = LIES[lie]
    header, weights = json.loads(json.dumps(captioner.header())), {n: v.clone() for n, v in captioner.weights().items()}
    change(header, weights)
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_slim(path, header, weights)
    else:
        path.write_bytes(fuzz.written(header, weights, tmp_path, slim=False))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(Captioner.load, path, says=[str(path), says])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


TENSORS = {
    "four terabytes of one number": torch.ones(1).expand(10**6, 10**6),
    "overlapping": torch.ones(100).as_strided((13, 16), (7, 1)),
    "sparse": torch.sparse_coo_tensor(torch.zeros((2, 1), dtype=torch.long), torch.ones(1), (13, 16)),
    "of no memory": torch.empty((13, 16), device="meta"),
    "quantised": torch.quantize_per_tensor(torch.ones(13, 16), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_odd_tensors_are_refused(captioner, tmp_path, kind):
    for name in ("decoder.embedding.weight", "encoder.more"):
        weights = {**captioner.weights(), name: TENSORS[kind]}
        path = tmp_path / "model.ckpt"
        path.write_bytes(fuzz.written(captioner.header(), weights, tmp_path, slim=False))
        refused(Captioner.load, path, says=[f"{path} is not a captioner checkpoint ({name} is not a dense tensor"])


def test_weights_that_are_no_numbers_are_neither_averaged_nor_begun_with(captioner, tmp_path, cli):
    path = tmp_path / "model.safetensors"
    save_slim(path, captioner.header(), {name: value * torch.nan for name, value in captioner.weights().items()})
    code, _, err = cli("average", path, path, "--output", tmp_path / "mean.safetensors")
    assert code == 2
    assert is_one_line(err.strip(), "infinite or NaN values")
    assert not (tmp_path / "mean.safetensors").exists()
    refused(init_from, captioner, path, says=["infinite or NaN values"])


def test_a_packed_checkpoint_is_refused_unread(captioner, tmp_path):
    """torch would unpack it: a file of kilobytes may hold any amount of zeros."""
    whole, path = tmp_path / "whole.ckpt", tmp_path / "packed.ckpt"
    whole.write_bytes(fuzz.written(captioner.header(), captioner.weights(), tmp_path, slim=False))
    Captioner.load(whole)
    with zipfile.ZipFile(whole) as one, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as other:
        for name in one.namelist():
            other.writestr(name, one.read(name))
    refused(Captioner.load, path, says=["compressed"])


def test_so_are_packed_weights_of_an_encoder(tmp_path):
    path = tmp_path / "resnet.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("resnet/data.pkl", bytes(10_000))
    with pytest.raises(ValueError, match="compressed"):
        load_pickle(path)


def test_the_older_format_of_torch_is_not_opened(captioner, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}, "captioner": {}}, path, _use_new_zipfile_serialization=False)
    refused(Captioner.load, path, says=["not run"])


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_header_that_claims_everything(tmp_path, name):
    (tmp_path / name).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(read_checkpoint, tmp_path / name)


def test_the_vocabulary_of_any_language_is_taken(tmp_path):
    words = ["Mädchen", "собака", "犬", "कुत्ता", "كلب", "l’homme", "t-shirt", "10:30"]
    captioner = make_captioner()
    header = {**captioner.header(), "vocabulary": [*words, "x"][:9]}
    save_slim(tmp_path / "model.safetensors", header, captioner.weights())
    assert set(words) < set(Captioner.load(tmp_path / "model.safetensors").vocabulary.words)


# ---- images


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "BMP", "AVIF"])
def test_a_image_cut_at_every_per_cent_is_whole_or_refused(kind):
    buffer = io.BytesIO()
    Image.effect_noise((48, 40), 90).convert("RGB").save(buffer, kind)
    data = buffer.getvalue()
    whole = open_image(data).tobytes()
    for percent in range(100):
        try:
            opened = open_image(data[: len(data) * percent // 100])
        except UserError as error:
            fuzz.one_line(error)
        else:
            assert opened.tobytes() == whole  # what was lost was not of the pixels


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, body: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(body, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_odd_shapes_and_names(tmp_path, cli, captioner):
    """1 × 1, 30,000 pixels wide, another ending, several frames, a folder called so: a caption or a line each."""
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    (tmp_path / "wide.png").write_bytes(png(30_000, 2, b"\0" * 2 * 30_001))
    Image.new("RGB", (9, 9)).save(tmp_path / "gif.jpg", "GIF")
    Image.new("RGB", (9, 9)).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")]
    )
    Image.new("CMYK", (9, 9)).save(tmp_path / "cmyk.jpg", icc_profile=b"\0" * 500)
    Image.new("I;16", (9, 9), 40_000).save(tmp_path / "deep.png")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "vector.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000, b"\0" * 100_000))
    (tmp_path / "text.png").write_bytes(png(4, 4, b"\0" * 20, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))))
    captioner.save(tmp_path / "model.safetensors")
    code, out, err = cli("predict", tmp_path, "--checkpoint", tmp_path / "model.safetensors")
    assert code == 1
    captioned = {Path(line.split("\t")[0]).name for line in out.splitlines()}
    assert captioned == {"one.png", "wide.png", "gif.jpg", "moving.gif", "cmyk.jpg", "deep.png"}
    assert "Traceback" not in err
    assert len(err.splitlines()) == 4  # vector, bomb, text; and how many
    for name, says in {"vector.jpg": "not an image", "bomb.png": "178,956,970 pixels", "text.png": ""}.items():
        assert any(name in line and says in line for line in err.splitlines()), err


def test_a_jpeg_of_very_many_scans(tmp_path):
    """Each takes a few bytes of the file, and is decoded over all of the image."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert open_image(data).size == (64, 64)
    last = data[data.rindex(b"\xff\xda") : -2]
    refused(open_image, data[:-2] + last * 500 + data[-2:], says=["scans, at most 100"])
    assert open_image(data + last * 500 + b"\xff\xda" * 500).size == (64, 64)  # as behind a moving photograph


@pytest.mark.parametrize("command", ["predict", "data inspect"])
def test_pipes_are_not_waited_for(folder, captioner, cli, command):
    """That nobody ever writes to."""
    captioner.save(folder / "model.safetensors")
    (folder / "pipes").mkdir()
    os.mkfifo(folder / "pipes" / ("x.jpg" if command == "predict" else "x.tar"))
    more = ["--checkpoint", folder / "model.safetensors"] if command == "predict" else []
    code, out, err = cli(*command.split(), folder / "pipes", *more)
    assert code == (1 if command == "predict" else 2)
    assert out == ""
    assert "a pipe or a device" in err


@pytest.mark.parametrize("offset", [8, 10, 0, 2**31])
def test_exif_that_points_at_itself(offset):
    """The next directory of an EXIF block is the block itself, or lies nowhere."""
    entry = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x8769, 4, 1, offset)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entry + struct.pack("<I", offset)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert open_image(buffer.getvalue()).size in ((4, 8), (8, 4))


@pytest.mark.slow
def test_memory_of_the_largest_images():
    """Stated in docs/reliability.md."""
    code = """
import io, resource, sys
from PIL import Image
from captioner.data.images import MAX_PIXELS, open_image
side = int(MAX_PIXELS ** 0.5)
buffer = io.BytesIO()
Image.new(sys.argv[1], (side, side)).save(buffer, "PNG", compress_level=1)
data = buffer.getvalue()
del buffer
open_image(data, 224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    for mode in ("L", "I;16", "RGB", "RGBA"):
        done = subprocess.run([sys.executable, "-c", code, mode], cwd=ROOT, capture_output=True, text=True, check=True)
        print(mode, done.stdout.strip(), "GiB")
        assert float(done.stdout) < 3.5


# ---- annotations


def coco(folder, images=None, annotations=None, text=None) -> Path:
    path = folder / "captions.json"
    images = [{"id": 1, "file_name": "a.png"}] if images is None else images
    annotations = [{"image_id": 1, "caption": "a dog"}] if annotations is None else annotations
    path.write_text(text or json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return tmp_path


OUTSIDE = ["../secret.png", "../../etc/passwd", "/etc/passwd", "x/../../secret.png", "./../secret.png", "..", ".", "/"]
OUTSIDE += ["a\0.png", "\ud800.png", "a.png/", "a.png/../../secret.png", "~/secret.png", "file:///etc/passwd", ""]


@pytest.mark.parametrize("name", range(len(OUTSIDE)))
def test_a_file_name_never_leads_out_of_the_folder(folder, monkeypatch, name):
    path = coco(folder, images=[{"id": 1, "file_name": OUTSIDE[name]}])
    opened = []
    monkeypatch.setattr("captioner.data.images.open_file", lambda path: opened.append(path))
    try:
        examples, _ = read_examples(path, folder / "images")
    except UserError as error:
        fuzz.one_line(error)
    else:  # a slash at its end is the image itself
        assert [example.path for example in examples] == [folder / "images" / "a.png"]
    assert not opened


def test_the_same_of_a_table(folder):
    (folder / "t.csv").write_text("image,caption\n../secret.png,a dog\n")
    refused(read_examples, folder / "t.csv", folder / "images", says=["leaves"])


def packed(folder, **files: bytes) -> Path:
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("y.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return folder / "s.tar"


@pytest.mark.parametrize("name", ["../../x", "../x", "/x", "a/../../x", "//x", "./../x", "TMP/x"])
@pytest.mark.parametrize("to", ["coco", "webdataset"])
def test_a_file_of_a_shard_never_leaves_the_folder(folder, cli, name, to):
    """Neither where it is read nor where it is written again."""
    name = name.replace("TMP", str(folder))
    tar = packed(folder, **{f"{name}.png": (folder / "secret.png").read_bytes(), f"{name}.txt": b"a dog"})
    before = sorted(folder.rglob("*"))
    refused(read_examples, tar, says=["leaves"])
    copies = ["--image_files", "copy"] if to == "coco" else []
    code, _, err = cli("data", "convert", tar, "--to", to, *copies, "--output", folder / "out")
    assert code == 2
    assert is_one_line(err.strip(), "leaves")
    assert sorted(folder.rglob("*")) == before


def test_names_are_looked_at_again_where_they_are_written(folder):
    example = Example(1, folder / "secret.png", ("a dog",), "../out.png")
    for write in (to_webdataset, lambda examples, out: to_coco(examples, out, folder, "copy")):
        refused(write, [example], folder / "out", says=["leaves"])
    assert not (folder / "out.png").exists()


def test_texts_of_a_shard_have_a_size_that_is_theirs(folder, monkeypatch):
    monkeypatch.setattr(shards, "MAX_TEXT", 100)
    image = (folder / "secret.png").read_bytes()
    refused(read_examples, packed(folder, **{"a.png": image, "a.txt": b"a" * 101}), says=["101 bytes of captions"])
    sparse = tarfile.TarInfo("a.txt")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)  # one piece of data
    header[483:495] = b"%011o\0" % 2**32  # in a file of 4 GiB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "s.tar").write_bytes(bytes(header) + bytes(512) + bytes(1024))
    refused(read_examples, folder / "s.tar", says=["sparse"])


def test_captions_that_no_terminal_should_see(folder):
    texts = ["a\x1b[2Jdog", "\ud800", "x\0y", "a " * 500_000, "\u202eright to left", "two\nlines", "\x07", "é" * 10]
    path = coco(folder, annotations=[{"image_id": 1, "caption": text} for text in texts])
    (example,) = read_examples(path, folder / "images", skip_bad=True)[0]
    assert example.captions == (
        "a [2Jdog",
        "x y",
        ("a " * 500_000)[:MAX_CHARACTERS],
        "\u202eright to left",
        "two\nlines",
        "é" * 10,
    )
    references, _ = read_references(path)
    assert references[1] == list(example.captions)


def test_keys_that_come_twice_are_refused_unless_they_agree(folder):
    """RFC 8259 leaves it open, and libraries take the last in silence."""
    text = '{"images": [{"id": 1, "file_name": "a.png", "file_name": "%s"}], "annotations": '
    text += '[{"image_id": 1, "caption": "a dog"}]}'
    assert len(read_examples(coco(folder, text=text % "a.png"), folder / "images")[0]) == 1
    path = coco(folder, text=text % "b.png")
    refused(read_examples, path, folder / "images", says=["'file_name' comes twice, as 'a.png' and as 'b.png'"])


@pytest.mark.parametrize(
    "text", ['{"images": NaN}', '{"images": [{"id": Infinity, "file_name": "a.png"}], "annotations": []}']
)
def test_numbers_that_are_none(folder, text):
    refused(read_examples, coco(folder, text=text), folder / "images")


def test_huge_ids(folder):
    path = coco(folder, [{"id": 10**300, "file_name": "a.png"}], [{"image_id": 10**300, "caption": "a dog"}])
    assert read_examples(path, folder / "images")[0][0].image_id == 10**300


# ---- options, lists, and what captioner itself wrote


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: &a\n  epochs: 1\nmodel: *a\n", "line 3: *a: write the value"),
        ("x: " + "[" * 5000, "options.yaml: line 1: nested more than 20 deep"),
        ("train:\n  epochs: " + "9" * 5000, "options.yaml: a number of thousands of digits"),
        ('train:\n  lr: "\\e[2J"', "--train.lr is ?[2J"),
        (b"\xff\xfe\xfa", "options.yaml: byte 0 is not UTF-8 text"),
        (
            "train: !!python/object/apply:os.system [exit]",
            "options.yaml: line 1: !!python/object/apply:os.system: write",
        ),
    ],
)
def test_options(tmp_path, cli, text, says):
    path = tmp_path / "options.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, err = cli("train", "--config", path)
    assert code == 2
    assert is_one_line(err.strip(), says)
    assert len(err) < 1000


def test_a_list_that_names_itself(tmp_path, cli):
    (tmp_path / "list.txt").write_text(f"@{tmp_path}/list.txt\n")
    code, _, err = cli("predict", f"@{tmp_path}/list.txt")
    assert code == 2
    assert is_one_line(err.strip(), "names other lists")


def test_a_name_of_thousands_of_letters(captioner, tmp_path, cli):
    captioner.save(tmp_path / "model.safetensors")
    code, _, err = cli("predict", f"/{'a' * 5000}/x*.jpg", "--checkpoint", tmp_path / "model.safetensors")
    assert code == 2
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("json", ["[" * 100_000, '{"image_id": ' + "9" * 5000 + "}"])
def test_about_a_sample_of_a_shard(folder, json):
    refused(read_examples, packed(folder, **{"a.png": (folder / "secret.png").read_bytes(), "a.json": json.encode()}))


INDICES = [
    {"fingerprint": [[1, 2]]},
    {"fingerprint": []},
    {"fingerprint": None},
    {"names": 2},
    {"unreadable": [99]},
    {"unreadable": ["x"]},
]
INDICES += [
    {"unreadable": [0.5, "a"]},
    {"unreadable": {}},
    {"unreadable": [-1]},
    {"names": "ab"},
    [1],
    None,
    "[" * 10**5,
]


@pytest.mark.parametrize("number", range(len(INDICES)))
def test_an_index_of_features(tmp_path, number):
    index, shape = {"fingerprint": {"a": 1}, "names": ["a", "b", "c"], "unreadable": []}, (4,)
    write_features(tmp_path / "f", {"a": 1}, index["names"], shape, lambda first: [np.ones((3, 4), np.float16)])
    FeatureFile.open(tmp_path / "f", {"a": 1}, shape)
    change = INDICES[number]
    text = (
        change if isinstance(change, str) else json.dumps({**index, **change} if isinstance(change, dict) else change)
    )
    (tmp_path / "f" / "index.json").write_text(text)
    refused(FeatureFile.open, tmp_path / "f", {"a": 1}, shape, says=[str(tmp_path)])


@pytest.mark.parametrize(
    "rows", [np.ones((3, 4)), np.ones((3, 2, 2), np.float16), np.array("a"), np.array(["a"] * 3), np.float16(1)]
)
def test_rows_of_features(tmp_path, rows):
    write_features(tmp_path / "f", {"a": 1}, ["a", "b", "c"], (4,), lambda first: [np.ones((3, 4), np.float16)])
    np.save(tmp_path / "f" / "features.npy", rows)
    refused(FeatureFile.open, tmp_path / "f", {"a": 1}, (4,), says=[str(tmp_path)])


@pytest.mark.parametrize("text", ["3\n", "{}\n", '{"image": "a", "caption": 1}\n', "[" * 10**5 + "\n"])
def test_parts(tmp_path, text):
    parts = PartFolder(tmp_path / "parts", ["a"], 1, {})
    with parts.open():
        parts.write(0, [{"image": "a", "caption": "a dog"}])
    (tmp_path / "parts" / "part-000000.jsonl").write_text(text)
    refused(lambda: list(parts.records()), says=["is damaged"])
    (tmp_path / "parts" / "manifest.json").write_text(text)
    refused(parts.open().__enter__)


@pytest.mark.parametrize("logs", ["epoch\n1\n", "step,other\n1,2\n", "step,lr\n" + "9" * 400 + ",1\n", b"\xff", None])
def test_logs_of_a_run(tmp_path, cli, logs):
    pytest.importorskip("matplotlib")
    (tmp_path / "a$\\bad$" / "logs" / "part_x").mkdir(parents=True)
    file = tmp_path / "a$\\bad$" / "logs" / "part_0" / "metrics.csv"
    if logs is None:
        file.mkdir(parents=True)
    else:
        file.parent.mkdir()
        file.write_bytes(logs if isinstance(logs, bytes) else logs.encode())
    code, _, err = cli("plot", tmp_path / "a$\\bad$", "--output", tmp_path / "a.png")
    assert code == 2
    assert is_one_line(err.strip())
    if logs and isinstance(logs, str):
        file.write_text("step,lr\n1,2\n2,3\n")
        assert cli("plot", tmp_path / "a$\\bad$", "--output", tmp_path / "a.png")[0] == 0


CONFIG = {
    **{"format": 1, "image_size": 32, "words": ["<pad>", "<start>", "<end>", "<unk>", "dog"], "level": "word"},
    **{"state": 2, "context": 1},
    "search": {
        **{"beam": 5, "n_best": 1, "max_length": 20, "min_length": 1, "length_norm": "gnmt", "length_penalty": 1.0}
    },
}


@pytest.mark.parametrize(
    "change",
    [
        *({"words": 3}, {"words": [*CONFIG["words"], "\x1b[2J"]}, {"words": [*CONFIG["words"], 3]}, {"level": "x"}),
        *({"state": "x"}, {"state": 0}, {"state": True}, {"context": -1}, {"context": 1.5}, {"image_size": "x"}),
        *({"image_size": -1}, {"search": []}, {"search": {**CONFIG["search"], "beam": 0}}),
        *({"search": {**CONFIG["search"], "length_norm": 3}}, {"search": {"beam": 5}}),
    ],
)
def test_the_config_of_an_exported_model(change):
    check_config(CONFIG)
    with pytest.raises((ValueError, KeyError, TypeError)):
        check_config({**CONFIG, **change})


# ---- all readers, damaged at random


@pytest.mark.parametrize("tries", [60, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "reader",
    [pytest.param("graphs", marks=pytest.mark.slow), *sorted(set(fuzz.TARGETS) - {"requests", "graphs"})],
)
def test_damaged_at_random(reader, tries, tmp_path, capfd):
    """A short run of tests/faults/fuzz.py, the same each time."""
    for package in {"parquet": ["pyarrow"], "videos": ["av"], "graphs": ["onnxruntime", "onnxscript"]}.get(reader, []):
        pytest.importorskip(package)
    make_seeds, target = fuzz.TARGETS[reader]
    target = target() if isinstance(target, type) else target
    seeds, chance = make_seeds(), random.Random(7)
    (tmp_path / "images").mkdir()
    for n, data in enumerate(fuzz.seeds_of_images()[:3]):
        (tmp_path / "images" / f"{n}.png").write_bytes(data)
    taken = refusals = 0
    for _ in range(tries):
        try:
            target(fuzz.next_try(chance.choice(seeds), tmp_path, chance), tmp_path)
            taken += 1
        except Exception as error:
            fuzz.one_line(error)
            refusals += 1
    assert taken > 0
    assert refusals > 0


def test_the_watch_sees_what_must_not_be(tmp_path):
    """The audit hook of the fuzzer, in a process of its own: it stays for good."""
    code = f"""
import os, pathlib, pickle, sys
sys.path.append("tests/faults")
import fuzz
watch = fuzz.Watch(pathlib.Path({str(tmp_path)!r}))
watch.on = True
open({str(tmp_path / "inside")!r}, "w").close()
assert not watch.broken, watch.broken
os.system("true"); open("/etc/passwd").close(); open("/tmp/../tmp/outside-of-it", "w").close()
watch.on = False
os.unlink("/tmp/outside-of-it")
print(len(watch.broken))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
