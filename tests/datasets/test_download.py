"""One file over HTTP from a server that goes wrong: the right bytes or one line, never a part under the final name."""

import hashlib
import json
import random
import shutil
import ssl
from types import SimpleNamespace
from urllib.error import URLError

import pytest
from hostile import Hostile
from hypothesis import given
from hypothesis import strategies as st

from captioner.datasets import download as module
from captioner.datasets.download import download, partial_size
from captioner.errors import UserError

DATA = random.Random(0).randbytes(100_000)
OTHER = random.Random(1).randbytes(90_000)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No waiting between attempts."""
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.fixture
def server():
    with Hostile() as hostile:
        hostile.files["a.zip"] = DATA
        yield hostile


@pytest.fixture
def get(server, tmp_path):
    """``get(behaviour, …)`` → the bytes fetched; afterwards nothing but the file is there."""

    def call(*script, **options):
        server.script.extend(script)
        path = tmp_path / "a.zip"
        download([f"{server.url}/a.zip"], path, **{"timeout": 5, "retries": 3, **options})
        assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
        return path.read_bytes()

    return call


def refused(tmp_path, get, *script, **options) -> str:
    """The one line with which it fails; nothing has the final name."""
    with pytest.raises(UserError) as error:
        get(*script, **options)
    assert not (tmp_path / "a.zip").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_interrupted_download_is_resumed(server, get):
    assert get({"cut": 40_000}, {"cut": 30_000}, {"cut": 0}) == DATA
    assert [asked for _, asked in server.log] == [None, "bytes=40000-", "bytes=70000-", "bytes=70000-"]


@pytest.mark.parametrize(
    "script",
    [
        [],
        [{"cut": 40_000}, {"ranges": False}],
        [{"cut": 40_000}, {"shift": 3}],
        [{"cut": 40_000}, {"shift": -3}],
        [{"cut": 40_000, "validator": False}],
        [{"longer": 500}],
        [{"status": 500}, {"status": 503, "headers": [("Retry-After", "0")]}, {"status": 429}],
        [{"cut": 10, "chunked": True}],
        [{"cut": 10_000, "chunked": True}, {"cut": 500}],
        [{"chunked": True}],
        [
            {"status": 302, "headers": [("Location", "/a.zip")]},
            {"cut": 40_000},
            {"status": 307, "headers": [("Location", "/a.zip")]},
        ],
    ],
    ids=str,
)
def test_the_right_bytes_in_the_end(get, script):
    assert get(*script) == DATA


@pytest.mark.parametrize("if_range", [True, False])
def test_a_changed_file_is_restarted(get, if_range):
    assert get({"cut": 40_000}, {"change": OTHER, "if_range": if_range}) == OTHER


def test_a_changed_file_of_the_same_size_is_restarted(server, get):
    """The server ignores If-Range, and only the ETag of its answer tells."""
    new = OTHER[:50_000] * 2
    assert get({"cut": 40_000}, {"change": new, "if_range": False}) == new


def test_a_changed_file_of_the_same_size_without_an_etag_is_restarted(get):
    new = OTHER[:50_000] * 2
    assert get({"cut": 40_000}, {"change": new, "if_range": False, "validator": False}) == new


def test_a_weak_etag_does_not_vouch_for_bytes(server, get):
    assert get({"cut": 40_000, "weak": True}, {"weak": True}) == DATA
    assert [asked for _, asked in server.log] == [None, None]


def test_progress_resets_the_count_of_retries(get):
    assert get(*[{"cut": 1000}] * 9, retries=0) == DATA


def test_a_shorter_file_is_restarted(get):
    assert get({"cut": 95_000}, {"change": OTHER, "if_range": False}) == OTHER


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "cut": st.integers(0, 4000),
                "change": st.sampled_from([DATA[:3000], OTHER[:3000], OTHER[:2500], DATA[:10]]),
                "ranges": st.booleans(),
                "if_range": st.booleans(),
                "shift": st.integers(-5, 5),
                "validator": st.booleans(),
                "chunked": st.booleans(),
                "longer": st.integers(0, 9),
                "status": st.sampled_from([500, 503, 429]),
            },
        ),
        max_size=8,
    )
)
def test_the_bytes_are_right_whatever_is_interrupted(tmp_path, server, script):
    """In the end the server works: the file is its last version, or was complete before the change."""
    path = tmp_path / "a.zip"
    path.unlink(missing_ok=True)
    server.files["a.zip"] = DATA[:3000]
    versions = {DATA[:3000], *(answer["change"] for answer in script if "change" in answer)}
    server.script.clear()
    server.script.extend(script)
    download([f"{server.url}/a.zip"], path, timeout=5, retries=20)
    assert path.read_bytes() in versions
    if not server.script:
        assert path.read_bytes() == server.files["a.zip"]


def test_wrong_sizes(tmp_path, server, get):
    size, digest = len(DATA), hashlib.sha256(DATA).hexdigest()
    assert "99,500 bytes and not 100,000" in refused(tmp_path, get, {"longer": -500}, size=size)
    assert "SHA-256" in refused(tmp_path, get, {"longer": -500}, sha256=digest)  # the size is unknown
    assert not list(tmp_path.iterdir())  # a part that cannot become the file does not stay
    assert "tried 4 times without progress" in refused(tmp_path, get, *[{"longer": 500, "ranges": False}] * 9)
    server.script.clear()
    assert get(size=size, sha256=digest) == DATA


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"status": 404}, "HTTP 404 Not Found"),
        ({"status": 403}, "HTTP 403 Forbidden"),
        ({"status": 302, "headers": [("Location", "file:///etc/hostname")]}, "file:///etc/hostname"),
        ({"status": 302, "headers": [("Location", "http://[")]}, "a.zip"),
        ({"status": 204}, "HTTP 204"),
        ({"html": True}, "web page"),
        ({"change": OTHER}, "90,000 bytes and not 100,000"),
    ],
    ids=str,
)
def test_refusals_are_not_tried_again(tmp_path, server, get, answer, says):
    line = refused(tmp_path, get, answer, size=len(DATA))
    assert says in line
    assert f"{server.url}/a.zip" in line
    assert len(server.log) == 1


def test_a_web_page_keeps_the_part(tmp_path, server, get):
    line = refused(tmp_path, get, {"cut": 40_000}, {"html": True})
    assert "40,000 bytes are kept" in line
    assert partial_size(tmp_path / "a.zip") == 40_000
    assert get() == DATA
    assert server.log[-1][1] == "bytes=40000-"


def test_a_server_that_never_answers(tmp_path, server, get):
    line = refused(tmp_path, get, *[{"hang": True, "ranges": False}] * 3, timeout=0.1, retries=1)
    assert "no data for 0.1 s" in line
    assert get() == DATA


def test_a_refused_connection(tmp_path, server, get):
    server.shutdown()
    server.server_close()
    assert "refused" in refused(tmp_path, get, retries=1)


def test_a_certificate_that_does_not_fit_is_not_tried_again(tmp_path, get, monkeypatch):
    tried = []

    def untrusted(request, timeout):
        tried.append(request)
        raise URLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))

    monkeypatch.setattr(module, "urlopen", untrusted)
    assert "certificate verify failed" in refused(tmp_path, get)
    assert len(tried) == 1


def test_the_next_address(tmp_path, server):
    server.files["second/a.zip"] = OTHER
    server.script.extend([{"cut": 40_000}, {"status": 403}])
    download([f"{server.url}/a.zip", f"{server.url}/second/a.zip"], tmp_path / "a.zip", timeout=5)
    assert (tmp_path / "a.zip").read_bytes() == OTHER  # nothing of the first one's part
    assert server.log[-1] == ("second/a.zip", None)
    with pytest.raises(UserError) as error:
        download([f"{server.url}/x/b.zip", f"{server.url}/y/b.zip"], tmp_path / "b.zip", timeout=5)
    assert "x/b.zip: HTTP 404" in str(error.value)
    assert "y/b.zip: HTTP 404" in str(error.value)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 1}', "null"])
def test_a_part_of_unknown_origin_is_restarted(tmp_path, server, get, note):
    (tmp_path / "a.zip.part").write_bytes(OTHER)
    (tmp_path / "a.zip.part.json").write_text(note)
    assert get() == DATA
    assert server.log == [("a.zip", None)]


def test_a_whole_part_needs_no_request(tmp_path, server, get):
    """Killed between the last byte and the renaming."""
    note = {"url": f"{server.url}/a.zip", "validator": '"x"', "size": len(DATA)}
    (tmp_path / "a.zip.part").write_bytes(DATA)
    (tmp_path / "a.zip.part.json").write_text(json.dumps(note))
    assert get() == DATA
    assert server.log == []


def test_a_full_disk(tmp_path, get, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    assert "the rest of a.zip needs 100kB and the disk has 50.0kB free" in refused(tmp_path, get)
    monkeypatch.undo()
    monkeypatch.setattr(module, "PAUSE", 0.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioner.files.os.fsync", full)
    assert "No space left on device" in refused(tmp_path, get)
