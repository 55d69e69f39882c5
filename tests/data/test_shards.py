"""Shards: what WebDataset writes is read as WebDataset reads it, at random, by address too; damage is one line."""

import http.server
import io
import os
import tarfile
import threading

import pytest
import webdataset as wds
from helpers import draw, is_one_line

from captioner.data.annotations import read_examples
from captioner.data.dataset import read_images
from captioner.data.images import find_images, open_image
from captioner.data.shards import expand, samples
from captioner.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards of three samples each. Read only."""
    top = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with wds.TarWriter(str(top / f"s-{shard}.tar")) as out:
            for n in range(3 * shard, 3 * shard + 3):
                draw(top / "one.png", n)
                image = (top / "one.png").read_bytes()
                out.write({"__key__": f"sub/{n:03}", "png": image, "txt": f"caption {n}", "json": {"n": n}})
    return top


def test_it_reads_what_webdataset_reads(folder):
    theirs = wds.WebDataset(expand(folder), shardshuffle=False)
    ours = [sample for shard in expand(folder) for sample in samples(shard)]
    for their, our in zip(theirs, ours, strict=True):
        assert their["__key__"] == our.key
        assert {key for key in their if not key.startswith("__")} == set(our.files)
        for ending, member in our.files.items():
            assert member.open().read() == their[ending]
        assert our.texts == {"txt": their["txt"], "json": their["json"]}
        assert open_image(our.files["png"]).tobytes() == open_image(their["png"]).tobytes()


class Parts(http.server.SimpleHTTPRequestHandler):
    """Sends parts of files, unless `whole`."""

    whole = False

    def do_GET(self):
        wanted = self.headers.get("Range")
        if wanted is None or self.whole:
            return super().do_GET()
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(folder):
    """``serve(whole)`` → the address of a server of the folder."""
    running = []

    def start(whole: bool) -> str:
        kind = type("Handler", (Parts,), {"whole": whole})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: kind(*a, directory=os.fspath(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_http(folder, serve, workers):
    examples, _ = read_examples(f"{serve(whole=False)}/s-{{0..1}}.tar")
    there, _ = read_examples(folder)
    assert [(e.name, e.captions) for e in examples] == [(e.name, e.captions) for e in there]
    for one, other in zip(*(read_images([e.path for e in s], 32, 4, workers) for s in (examples, there)), strict=True):
        assert one[1] == [None] * len(one[0])
        assert (one[0] == other[0]).all()


def test_a_server_without_range_requests(serve):
    address = f"{serve(whole=True)}/s-0.tar"
    with pytest.raises(UserError) as caught:
        read_examples(address)
    assert is_one_line(str(caught.value), address, "sends only whole files", "simplecache::")
    examples, _ = read_examples(f"simplecache::{address}")  # which downloads it
    assert open_image(examples[1].path).size == (32, 32)


def test_missing_shards(folder, serve, tmp_path):
    for path, says in {
        f"{serve(whole=False)}/none.tar": "no such file",
        str(tmp_path / "none-{0..1}.tar"): "none-0.tar: no such shard",
        "nonsense://bucket/a.tar": "nonsense",
        str(folder / "s-{0.tar"): "braces",
    }.items():
        with pytest.raises(UserError) as caught:
            read_examples(path)
        assert is_one_line(str(caught.value), says), caught.value


def write(path, files) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_damaged_shards(folder, tmp_path):
    whole = (folder / "s-0.tar").read_bytes()
    last = max((m for s in samples(str(folder / "s-0.tar")) for m in s.files.values()), key=lambda m: m.offset)
    damaged = whole[: last.offset - 512] + b"x" * 512 + whole[last.offset :]
    cut = whole[: last.offset - 700]
    for content, says in ((damaged, "fetch it again"), (cut, "not a whole tar"), (b"text" * 999, "not a whole tar")):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError) as caught:
            list(samples(str(tmp_path / "a.tar")))
        assert is_one_line(str(caught.value), str(tmp_path / "a.tar"), says), caught.value
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="unpack it"):
        read_examples(tmp_path / "a.tar.gz")
    with pytest.raises(UserError, match="comes twice"):
        list(samples(write(tmp_path / "b.tar", [("a.txt", b"1"), ("a.txt", b"2")])))


def test_bad_samples(folder, tmp_path):
    image = (folder / "one.png").read_bytes()
    files = [("a.png", image), ("a.txt", b"one\n\ntwo\n"), ("b.txt", b"x"), ("c.png", image), ("d.png", b"no")]
    shard = write(tmp_path / "a.tar", [*files, ("d.txt", b"y")])
    examples, skipped = read_examples(shard, skip_bad=True)
    assert [(e.name, e.captions) for e in examples] == [("a.tar/a.png", ("one", "two")), ("a.tar/d.png", ("y",))]
    assert ["blank" in skipped[0], "'b' has no image" in skipped[1], "no caption" in skipped[2]] == [True] * 3
    _, errors = next(read_images([e.path for e in examples], 32, 4))
    assert errors[0] is None
    assert is_one_line(str(errors[1]), f"{shard}/d.png", "not an image")


def test_a_shard_that_changes_is_noticed(folder, tmp_path):
    (tmp_path / "a.tar").write_bytes((folder / "s-0.tar").read_bytes())
    examples, _ = read_examples(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"")
    _, (error, *_) = next(read_images([e.path for e in examples], 32, 4))
    assert is_one_line(str(error), "a.tar", "changed or is cut short")


def test_predict_finds_the_images_of_shards(folder):
    found = find_images([str(folder / "s-{0..1}.tar")])
    assert [str(path) for path in found][:2] == [f"{folder}/s-0.tar/sub/00{n}.png" for n in range(2)]
    assert len(found) == 6
