"""Known sets from a faulty server: unpacked whole and checked, or an error of one line; killed and continued."""

import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest
from helpers import ROOT, SHADES, captions_of, draw, is_one_line
from hostile import Hostile, make_zip
from hypothesis import given
from hypothesis import strategies as st

from captioner.datasets import download, fetch
from captioner.datasets.fetch import COCO, SETS, BrokenZip, unpack, write_splits

ZIPS = {
    "text.zip": {"Flickr8k.token.txt": b"a dog", "__MACOSX/._x": b"junk", "more/.DS_Store": b"junk"},
    "images.zip": {f"photos/{i}.jpg": random.Random(i).randbytes(900) for i in range(20)},
}
FILES = {"Flickr8k.token.txt", *ZIPS["images.zip"]}


@pytest.fixture
def server(monkeypatch):
    """Serves the set "coco2017", which is made of two small zips here."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Hostile() as hostile:
        hostile.files |= {name: make_zip(files) for name, files in ZIPS.items()}
        archives = [
            fetch.Archive(f"{hostile.url}/{name}", len(data), 30_000, contains, name == "images.zip")
            for (name, data), contains in zip(hostile.files.items(), ["token.txt", "photos/"], strict=True)
        ]
        where = ("captions.json", "photos")
        monkeypatch.setitem(SETS, "coco2017", fetch.DataSet(tuple(archives), COCO, where, where))
        yield hostile


@pytest.fixture
def get(cli, server, tmp_path):
    """``get(behaviour, …, options=[…])`` → exit code, output and errors of ``captioner data fetch``."""

    def call(*script, options=()):
        server.script.clear()
        server.script.extend(script)
        server.log.clear()
        return cli("data", "fetch", "coco2017", "--output", tmp_path / "set", "--timeout", 5, "--retries", 2, *options)

    return call


def contents(folder) -> set[str]:
    """The files of a folder that are not hidden."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    }


def test_a_set(get, server, tmp_path):
    code, out, err = get({"cut": 50}, {"status": 500})
    assert code == 0
    assert COCO in err  # the licence
    assert contents(tmp_path / "set") == FILES
    for name, content in ZIPS["images.zip"].items():
        assert (tmp_path / "set" / name).read_bytes() == content
    assert out.startswith("captioner train --data.train ")

    code, again, err = get()  # all is there
    assert (code, again, server.log) == (0, out, [])
    assert "already unpacked in" in err

    (tmp_path / "set" / "photos" / "3.jpg").write_bytes(b"short")
    os.remove(tmp_path / "set" / "photos" / "4.jpg")
    code, _, err = get()
    assert code == 0
    assert "images.zip: 2 of its files are missing or changed" in err
    assert [name for name, _ in server.log] == ["images.zip"]
    assert contents(tmp_path / "set") == FILES


def test_options(get, server, tmp_path):
    code, out, _ = get(options=["--no_download_images", "--keep-archives"])
    assert code == 0
    assert "images: captioner data fetch coco2017" in out
    assert contents(tmp_path / "set") == {"Flickr8k.token.txt", "text.zip"}
    (tmp_path / "set" / "images.zip").write_bytes(server.files["images.zip"])  # put there by hand
    code, _, _ = get()
    assert (code, server.log) == (0, [])
    assert contents(tmp_path / "set") == {*FILES, "text.zip"}


def test_mirrors(get, server, tmp_path):
    for name in ZIPS:
        server.files[f"mirror/{name}"] = server.files.pop(name)
    code, _, err = get(options=["--mirror", f"{server.url}/none", f"{server.url}/mirror/"])
    assert code == 0, err
    assert contents(tmp_path / "set") == FILES
    for url in ("ftp://host/x", "mirror", "http://", "simplecache::https://host/a"):
        code, _, err = get(options=["--mirror", url])
        assert code == 2
        assert "--mirror is" in err


def spoilt(name: str) -> bytes:
    """A zip of one image that must not be unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("photos/1.jpg", bytes(1000) if name != "bomb" else bytes(10_000_000))
        if name == "dots":
            zipped.writestr("../outside.jpg", b"x")
        if name == "dots inside":
            zipped.writestr("photos/../../outside.jpg", b"x")
        if name == "absolute":
            zipped.writestr("/tmp/outside.jpg", b"x")
        if name == "backslash":
            zipped.writestr("..\\outside.jpg", b"x")
        if name == "link":
            link = zipfile.ZipInfo("photos/link")
            link.external_attr = 0o120777 << 16
            zipped.writestr(link, "/etc/passwd")
    data = bytearray(buffer.getvalue())
    if name == "checksum":
        data = data.replace(zipfile.ZipFile(buffer).infolist()[0].CRC.to_bytes(4, "little"), b"\1\2\3\4")
    if name == "flags":  # encrypted
        at = data.rindex(b"PK\1\2") + 8
        data[at] |= 1
    if name == "cut":
        data = data[:-30]
    if name == "text":
        data = bytearray(b"no zip at all")
    if name == "empty":
        data = bytearray()
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dots", "'../outside.jpg' leaves the folder"),
        ("dots inside", "leaves the folder"),
        ("absolute", "leaves the folder"),
        ("backslash", "leaves the folder"),
        ("link", "is a link"),
        ("bomb", "times its size"),
        ("checksum", "Bad CRC-32"),
        ("flags", "encrypted"),
        ("cut", "not a zip file"),
        ("text", "not a zip file"),
        ("empty", "not a zip file"),
    ],
)
def test_bad_zips(get, server, tmp_path, name, says):
    code, out, err = get({}, {"change": spoilt(name)})
    assert (code, out) == (2, "")
    assert is_one_line(err.splitlines()[-1], says, "fetch again"), err
    assert contents(tmp_path) == {"set/Flickr8k.token.txt"}  # neither its files nor the zip itself
    assert not os.path.exists("/tmp/outside.jpg")
    server.files["images.zip"] = make_zip(ZIPS["images.zip"])
    assert get()[0] == 0
    assert contents(tmp_path / "set") == FILES


def test_the_zip_of_another_set(get, server, tmp_path):
    code, _, err = get({}, {"change": make_zip({"cats/1.jpg": b"x"})})
    assert code == 2
    assert "has no photos/: another zip" in err


def test_a_zip_put_there_by_hand_is_not_removed(get, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "text.zip").write_bytes(spoilt("cut"))
    code, _, err = get()
    assert code == 2
    assert "remove it and fetch again" in err
    assert contents(tmp_path) == {"set/text.zip"}


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_damaged_bytes_never_become_files(tmp_path, flips):
    """Every file that comes out of a damaged zip is one that went in, or nothing comes out."""
    files = {"photos/a.txt": b"a dog runs " * 20, "photos/b.bin": random.Random(0).randbytes(300)}
    data = bytearray(make_zip(files))
    for place, bits in flips:
        data[int(place * len(data))] ^= bits
    path, out = tmp_path / "a.zip", tmp_path / "out"
    path.write_bytes(data)
    out.mkdir(exist_ok=True)
    line, listed = "", None
    try:
        listed = unpack(path, out)
    except BrokenZip as broken:
        line = str(broken)
    found = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    fetch.shutil.rmtree(out)
    assert "\n" not in line
    assert len(found) == len(listed or ())
    assert all(content in files.values() for content in found)


def test_refusals(get, server, tmp_path):
    code, out, err = get({"status": 404})
    assert (code, out) == (2, "")
    assert is_one_line(err.splitlines()[-1], "text.zip cannot be downloaded", "HTTP 404")
    code, _, err = get({"html": True})
    assert code == 2
    assert is_one_line(err.splitlines()[-1], "web page")
    assert contents(tmp_path / "set") == set()


def test_a_small_disk(get, server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))
    code, out, err = get()
    assert (code, out) == (2, "")
    assert "free disk space" in err
    assert server.log == []  # before anything was asked for
    assert contents(tmp_path / "set") == set()


def test_an_output_that_is_a_file(get, tmp_path):
    (tmp_path / "set").write_text("a file")
    code, _, err = get()
    assert code == 2
    assert is_one_line(err.splitlines()[-1], "cannot be written")


def test_two_at_once(get, tmp_path):
    from filelock import FileLock

    (tmp_path / "set").mkdir()
    with FileLock(tmp_path / "set" / ".fetch.lock"):
        code, _, err = get()
    assert code == 2
    assert "another process is fetching" in err


@pytest.mark.parametrize("option", [("--timeout", 0), ("--timeout", "nan"), ("--retries", -1)], ids=str)
def test_wrong_options(cli, server, tmp_path, option):
    code, _, err = cli("data", "fetch", "coco2017", "--output", tmp_path / "set", *option)
    assert code == 2
    assert option[0].strip("-") in err
    assert not (tmp_path / "set").exists()


def test_ctrl_c(get, server, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(download.time, "sleep", interrupt)  # in the pause after the cut
        code, _, err = get({}, {"cut": 4000})
    assert code == 130
    assert "4,000 bytes are kept, and the same command continues from there" in err
    assert get()[0] == 0
    assert server.log == [("images.zip", "bytes=4000-")]
    assert contents(tmp_path / "set") == FILES


FLICKR = {
    "Flickr8k.token.txt": "".join(
        f"{n}.jpg#{i}\t{text}\n" for n in range(12) for i, text in enumerate(captions_of(n, 5))
    ).encode(),
    "Flickr_8k.trainImages.txt": b"".join(b"%d.jpg\n" % n for n in range(6)),
    "Flickr_8k.devImages.txt": b"".join(b"%d.jpg\n" % n for n in range(6, 9)),
    "Flickr_8k.testImages.txt": b"".join(b"%d.jpg\n" % n for n in range(9, 12)),
}


def command(server, out, *options) -> list[str]:
    return [
        *(sys.executable, "-m", "captioner", "data", "fetch", "flickr8k", "--output", str(out)),
        *("--mirror", server.url, "--no_download_images", *options),
    ]


KILL = getattr(signal, "SIGKILL", None)


@pytest.mark.skipif(KILL is None, reason="Windows has no such signals")
@pytest.mark.parametrize("stop", [KILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_killed_and_continued(server, tmp_path, stop):
    """The first process dies in mid-download; the second one fetches only the rest."""
    noise = random.Random(0).randbytes(400_000)
    server.files["Flickr8k_text.zip"] = make_zip({**FLICKR, "noise.bin": noise})
    server.script.append({"pause": 0.02})  # two seconds in all
    out = tmp_path / "set"
    part = out / "Flickr8k_text.zip.part"
    first = subprocess.Popen(
        command(server, out),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 50_000):
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(stop)
    _, err = first.communicate(timeout=30)
    assert first.returncode == (-stop if stop == KILL else 130)
    assert ("bytes are kept" in err) == (stop == signal.SIGINT)
    had = part.stat().st_size
    assert contents(out) == {part.name, f"{part.name}.json"}
    second = subprocess.run(command(server, out), cwd=ROOT, capture_output=True, text=True, check=True)
    assert server.log == [("Flickr8k_text.zip", None), ("Flickr8k_text.zip", f"bytes={had}-")]
    assert second.stdout.startswith(str(out))
    assert (out / "noise.bin").read_bytes() == noise
    assert {"captions_train.json", "captions_val.json", "captions_test.json"} < contents(out)


# ---- the sets themselves


def images(tmp_path, names) -> dict[str, bytes]:
    """A small image for each name."""
    found = {}
    for number, name in enumerate(names):
        draw(tmp_path / "one.png", number % len(SHADES))
        found[name] = (tmp_path / "one.png").read_bytes()
    os.remove(tmp_path / "one.png")
    return found


def coco(year: str, numbers) -> bytes:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in numbers]
    rows = [{"id": n * 5 + i, "image_id": n, "caption": c} for n in numbers for i, c in enumerate(captions_of(n, 5))]
    return json.dumps({"images": images, "annotations": rows}).encode()


def karpathy() -> bytes:
    splits = ["train"] * 4 + ["restval"] * 2 + ["val"] * 3 + ["test"] * 3
    rows = [
        {
            "cocoid": n,
            "filepath": "train2014" if split == "train" else "val2014",
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": text, "tokens": text.split()} for text in captions_of(n, 5)],
        }
        for n, split in enumerate(splits)
    ]
    return json.dumps({"images": rows, "dataset": "coco"}).encode()


def host(name: str, tmp_path) -> dict[str, bytes]:
    """What the host of a set serves: as the real zips are laid out, with 12 images."""
    year = "2014" if name == "karpathy" else name.removeprefix("coco")
    if name == "flickr8k":
        photos = images(tmp_path, [f"Flicker8k_Dataset/{n}.jpg" for n in range(12)])
        return {"Flickr8k_text.zip": make_zip(FLICKR), "Flickr8k_Dataset.zip": make_zip(photos)}
    first = {"karpathy": 4}.get(name, 6)
    folders = {f"train{year}": range(first), f"val{year}": range(first, 12)}
    zips = {
        f"{folder}.zip": make_zip(images(tmp_path, [f"{folder}/{n}.jpg" for n in part]))
        for folder, part in folders.items()
    }
    if name == "karpathy":
        return {**zips, "caption_datasets.zip": make_zip({"dataset_coco.json": karpathy()})}
    annotations = {f"annotations/captions_{folder}.json": coco(year, part) for folder, part in folders.items()}
    return {**zips, f"annotations_trainval{year}.zip": make_zip(annotations)}


@pytest.mark.parametrize("name", ["coco2014", "coco2017", "karpathy", "flickr8k"])
def test_the_command_at_the_end_trains(monkeypatch, cli, tmp_path, name):
    """The zips of each set as they are laid out; the printed command finds its six training and its other images."""
    from captioner.cli import train
    from captioner.data.annotations import read_examples

    monkeypatch.setattr(fetch, "check_free_space", lambda *_: None)  # for 40 GB
    out = tmp_path / "my set"
    with Hostile() as server:
        server.files |= host(name, tmp_path)
        code, printed, err = cli("data", "fetch", name, "--output", out, "--mirror", server.url, "--no_check_sums")
        assert code == 0, err
    ran = []
    monkeypatch.setattr(train, "run", lambda options: ran.append(options.data))
    words = shlex.split(printed)
    assert words[:2] == ["captioner", "train"]
    assert cli(*words[1:])[0] == 0
    examples, _ = read_examples(ran[0].train, ran[0].train_images)
    assert [example.captions for example in examples] == [tuple(captions_of(n, 5)) for n in range(6)]
    examples, _ = read_examples(ran[0].val, ran[0].val_images)
    assert [example.captions[0] for example in examples][:3] == [captions_of(n, 1)[0] for n in range(6, 9)]


@pytest.mark.parametrize(
    "text",
    [
        {"Flickr8k.token.txt": b"1.jpg#0\ta dog\n"},  # no lists
        {**FLICKR, "Flickr_8k.devImages.txt": b"99.jpg\n"},  # an image without captions
        {**FLICKR, "Flickr8k.token.txt": b"\xff"},
    ],
    ids=["no lists", "no captions", "no text"],
)
def test_annotations_of_something_else(cli, tmp_path, text):
    with Hostile() as server:
        server.files["Flickr8k_text.zip"] = make_zip(text)
        options = ["--output", tmp_path, "--no_download_images", "--mirror", server.url]
        code, _, err = cli("data", "fetch", "flickr8k", *options)
    assert code == 2
    assert is_one_line(err.splitlines()[-1], "annotations are not those of flickr8k")


@pytest.mark.parametrize("name", ["coco2014", "karpathy"])
def test_checksums_are_verified(monkeypatch, cli, tmp_path, name):
    monkeypatch.setattr(fetch, "check_free_space", lambda *_: None)
    with Hostile() as server:
        server.files |= host(name, tmp_path)
        code, _, err = cli("data", "fetch", name, "--output", tmp_path / "set", "--mirror", server.url)
        first = SETS[name].archives[0].name
        (tmp_path / "by hand").mkdir()
        (tmp_path / "by hand" / first).write_bytes(server.files[first])
        again, _, by_hand = cli("data", "fetch", name, "--output", tmp_path / "by hand", "--mirror", server.url)
    assert (code, again) == (2, 2)
    assert is_one_line(by_hand.splitlines()[-1], "remove it and fetch again")
    assert re.search(r"bytes and not (252,872,794|36,745,453): another file", err)
    assert contents(tmp_path / "set") == set()


def test_splits_have_the_captions_as_they_are(tmp_path):
    """Byte for byte: white space stays, Flickr8k's images are numbered in the order of their list."""
    sentences = [{"raw": " a dog . "}, {"raw": "ünï\n"}]
    image = {"filepath": "val2014", "filename": "7.jpg", "cocoid": 7, "imgid": 0, "sentences": sentences}
    rows = [
        {**image, "split": "restval"},
        {**image, "cocoid": 3, "split": "val"},
        {**image, "cocoid": 5, "split": "test"},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    write_splits("karpathy", tmp_path)
    captions = [{"id": n, "image_id": 7, "caption": text["raw"]} for n, text in enumerate(sentences)]
    written = (
        json.dumps({"images": [{"id": 7, "file_name": "val2014/7.jpg"}], "annotations": captions}, indent=1) + "\n"
    )
    assert (tmp_path / "captions_train.json").read_text() == written

    (tmp_path / "Flickr8k.token.txt").write_text("1.jpg#0\ta dog \n2.jpg#0\t two\n1.jpg#1\tcats\n")
    for name, images in (("train", "2.jpg\n1.jpg\n"), ("dev", "1.jpg"), ("test", "1.jpg")):
        (tmp_path / f"Flickr_8k.{name}Images.txt").write_text(images)
    write_splits("flickr8k", tmp_path)
    listed = [{"id": 0, "file_name": "2.jpg"}, {"id": 1, "file_name": "1.jpg"}]
    captions = [(0, " two"), (1, "a dog "), (1, "cats")]
    captions = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    written = json.dumps({"images": listed, "annotations": captions}, indent=1) + "\n"
    assert (tmp_path / "captions_train.json").read_text() == written
