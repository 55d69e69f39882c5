"""The weights that come with captioner: found in four places, in their order, and cached by digest."""

import hashlib

import pytest
from helpers import ROOT, is_one_line, refused
from hostile import Hostile

from captioner.datasets import download
from captioner.models import weights
from captioner.models.checkpoint import resolve_checkpoint
from captioner.models.concepts import imagenet_head
from captioner.models.encoder import weights_file
from captioner.models.weights import MODEL, add_to_cache, find_weights, known_digests, sha256

FILES = {MODEL: b"a model", "resnet50_v1.safetensors": b"a network", "resnet50_v1_head.safetensors": b"its head"}
REMEDY = "(cd checkpoints && sha256sum *.safetensors) > captioner/models/weights.sha256"


@pytest.fixture
def digests(monkeypatch):
    """A version whose files are FILES."""
    found = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(weights, "known_digests", lambda: found)
    return found


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Captioner installed without weights, outside its repository, with an empty cache."""
    monkeypatch.setattr(weights, "REPOSITORY", None)
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("CAPTIONER_WEIGHTS", raising=False)


def put(folder, content=b"x"):
    """The file of the shipped model in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(content)
    return folder / MODEL


def test_the_digests_are_those_of_the_files():
    found = {file.name: sha256(file) for file in (ROOT / "checkpoints").glob("*.safetensors")}
    assert known_digests() == found, f"after a change of the weights: {REMEDY}"


def test_the_places_and_their_order(installed, digests, tmp_path, monkeypatch):
    for name in FILES:
        line = refused(find_weights, name, says=[name, "captioner-weights", "captioner weights --from"])
        assert all(place in line for place in ("CAPTIONER_WEIGHTS", "checkpoints/ of a clone", "cache"))
    add_to_cache(str(put(tmp_path / "given", FILES[MODEL])))
    assert find_weights() == tmp_path / "cache" / digests[MODEL][:16] / MODEL

    package = put(tmp_path / "site" / "captioner_weights")
    (package.parent / "__init__.py").touch()
    monkeypatch.undo()  # of find_spec; the rest again
    monkeypatch.setattr(weights, "REPOSITORY", None)
    monkeypatch.delenv("CAPTIONER_WEIGHTS", raising=False)
    monkeypatch.syspath_prepend(package.parents[1])
    assert find_weights() == package

    clone = put(tmp_path / "clone" / "checkpoints")
    monkeypatch.setattr(weights, "REPOSITORY", tmp_path / "clone")
    assert find_weights() == clone

    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(mine))
    assert find_weights() == clone  # a folder that lacks a file leaves it to the next
    put(mine)
    assert find_weights() == mine / MODEL
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(mine / MODEL))
    refused(find_weights, says=["CAPTIONER_WEIGHTS", "expected a folder"])


def test_all_weights_are_looked_for_there(installed, digests, tmp_path, monkeypatch):
    for ask in (
        lambda: resolve_checkpoint(None),
        lambda: weights_file("resnet50_v1"),
        lambda: imagenet_head("resnet50_v1"),
    ):
        refused(ask, says=["captioner weights --from"])
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(put(tmp_path / "mine").parent))
    assert resolve_checkpoint(None) == tmp_path / "mine" / MODEL


def test_a_file_is_known_by_its_digest(installed, digests, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "renamed.bin").write_bytes(FILES["resnet50_v1.safetensors"])
    assert add_to_cache(str(folder / "renamed.bin")) == [find_weights("resnet50_v1.safetensors")]
    refused(add_to_cache, str(folder), says=["has none of", MODEL])
    put(folder, b"another")
    refused(add_to_cache, str(folder), says=[f"{folder / MODEL} is none of the weights of captioner", "CAPTIONER"])
    refused(add_to_cache, str(tmp_path / "missing"), says=["missing", "no such file"])
    refused(add_to_cache, "s3://bucket/file", says=["expected a file, a folder or an http(s) address"])
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    assert add_to_cache(str(folder)) == [find_weights(name) for name in FILES]
    assert [find_weights(name).read_bytes() for name in FILES] == list(FILES.values())


def test_an_address(installed, digests, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Hostile() as server:
        server.files |= {"weights?download=1": FILES[MODEL], "other": b"another"}
        server.script.extend([{"cut": 3}])
        assert add_to_cache(f"{server.url}/weights?download=1") == [find_weights()]
        refused(add_to_cache, f"{server.url}/other", says=[f"{server.url}/other is none of the weights"])
        refused(add_to_cache, f"{server.url}/missing", says=["missing", "404"])
    assert find_weights().read_bytes() == FILES[MODEL]
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == [find_weights()]


# ---- captioner weights


def test_the_files_of_a_clone(cli):
    code, out, err = cli("weights")
    assert (code, err) == (0, "")
    for name, digest in known_digests().items():
        assert f"from the repository: {ROOT / 'checkpoints' / name}\n    SHA-256 {digest}, that of captioner" in out


def test_another_file_is_named_as_such(cli, tmp_path, monkeypatch):
    (tmp_path / MODEL).write_bytes(b"another")
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(tmp_path))
    code, out, _ = cli("weights")
    assert code == 0
    assert f"from CAPTIONER_WEIGHTS: {tmp_path / MODEL}\n" in out
    assert f"SHA-256 {hashlib.sha256(b'another').hexdigest()}, not that of captioner" in out


def test_the_cache_is_filled(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "REPOSITORY", None)
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    code, out, err = cli("weights")
    assert code == 2
    assert out.count(": not found\n") == 3
    assert is_one_line(err, "there is no captioner.safetensors", "captioner weights --from FILE|URL")

    name, digest = "resnet50_v1_head.safetensors", known_digests()["resnet50_v1_head.safetensors"]
    code, out, err = cli("weights", "--from", ROOT / "checkpoints" / name)
    assert (code, err) == (0, "")
    assert is_one_line(out, name, str(tmp_path / "cache" / digest[:16] / name))
    assert f"{name}, 4.1 MB, from the cache" in cli("weights")[1]

    code, out, err = cli("weights", "--from", ROOT / "README.md")
    assert (code, out) == (2, "")
    assert is_one_line(err, "README.md is none of the weights of captioner")
    assert is_one_line(cli("weights", "--from", "missing")[2], "missing: no such file")
