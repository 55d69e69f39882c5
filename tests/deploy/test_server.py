"""``captioner serve``: every form of request, every limit, and the captions of predict."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict

import pytest
from helpers import ROOT, is_one_line, make_captioner, refused
from PIL import Image

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
pytest.importorskip("fastapi_offline", reason="pip install -e '.[serve]'")
from starlette.testclient import TestClient

from captioner.config import SearchConfig, ServeConfig
from captioner.deploy import safe_fetch
from captioner.deploy.server import make_app
from captioner.models.confidence import Calibration


@contextmanager
def serving(model, search=None, cors=(), **limits):
    with TestClient(make_app(model, search or SearchConfig(beam=2), ServeConfig(**limits), "tiny", cors)) as client:
        yield client


@pytest.fixture
def client(captioner):
    with serving(captioner, max_images=3, max_bytes=40_000, max_pixels=10_000) as client:
        yield client


@pytest.fixture(scope="module")
def files(images):
    return {path.name: path.read_bytes() for path in images}


def post(client, *files):
    return client.post("/caption", files=[("files", (name, data)) for name, data in files])


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_file_several_files_and_base64_have_the_captions_of_predict(client, captioner, images, files):
    expected = {path.name: captioner.caption(path, beam=2) for path in images}
    some = list(files.items())[:3]
    one = post(client, some[0])
    assert one.status_code == 200
    assert one.json()["model"] == "tiny"
    assert [(r["name"], r["caption"]) for r in one.json()["results"]] == [(some[0][0], expected[some[0][0]])]
    several = post(client, *some).json()["results"]
    assert [r["caption"] for r in several] == [expected[name] for name, _ in some]
    assert {"log_prob", "score", "perplexity", "ended", "probabilities"} <= set(several[0])
    coded = client.post(
        "/caption", json={"images": [packed(some[0][1]), "data:image/png;base64," + packed(some[1][1])]}
    )
    assert [r["caption"] for r in coded.json()["results"]] == [expected[name] for name, _ in some[:2]]


def test_n_best(captioner, files):
    with serving(captioner, SearchConfig(beam=4, n_best=3)) as client:
        (result,) = post(client, next(iter(files.items()))).json()["results"]
    assert len(result["n_best"]) == 3
    assert result["n_best"][0]["caption"] == result["caption"]


def test_a_request_has_options_of_its_own(captioner, images, files):
    """In a form and in JSON; requests with and without them share the server."""
    name, data = next(iter(files.items()))
    best, widest = captioner.caption(images[0], beam=2), captioner.caption(images[0], beam=4, n_best=3)
    short = captioner.caption(images[0], beam=2, n_best=2, length_penalty=0.0)
    with serving(captioner, max_beam=4) as client, ThreadPoolExecutor(8) as pool:
        form = {"files": [("files", (name, data))], "data": {"beam": "4", "n_best": "3"}}
        coded = {"json": {"images": [packed(data)], "n_best": 2, "length_penalty": 0}}
        requests = [form, coded, {"files": form["files"]}] * 3
        answers = [pool.submit(client.post, "/caption", **request) for request in requests]
        results = [answer.result().json()["results"][0] for answer in answers]
    for wide, penalised, plain in zip(results[::3], results[1::3], results[2::3], strict=True):
        assert [one["caption"] for one in wide["n_best"]] == [one.text for one in widest]
        assert [one["score"] for one in penalised["n_best"]] == pytest.approx([one.score for one in short], abs=1e-3)
        assert plain["caption"] == best
        assert "n_best" not in plain


def test_confidence(captioner, files, monkeypatch):
    """The best caption has one, by the search that the model is calibrated for."""
    search = asdict(SearchConfig(beam=2).for_model(captioner.max_length))
    monkeypatch.setattr(captioner, "calibration", Calibration(1.0, 1.0, 40.0, 500, search))
    form = [("files", next(iter(files.items())))]
    with serving(captioner) as client:
        (result,) = client.post("/caption", files=form, data={"n_best": 2}).json()["results"]
        (wider,) = client.post("/caption", files=form, data={"beam": 3}).json()["results"]
    assert 0 < result["confidence"] < 1
    assert [one.get("confidence") for one in result["n_best"]] == [result["confidence"], None]
    assert "confidence" not in wider


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_best": 3}, "n_best is 3: expected 1 to the beam width (2)"),
        ({"n_best": 0}, "n_best is 0: expected 1 to 1000"),
        ({"beam": 0}, "beam is 0: expected 1 to 1000"),
        ({"beam": 9}, "beam is 9: at most 8 on this server (--max_beam)"),
        ({"beam": 8, "n_best": 10**9}, "n_best is 1,000,000,000: at most 8"),
        ({"beam": "wide"}, "beam is 'wide': expected a whole number"),
        ({"beam": "2.5"}, "beam is '2.5': expected a whole number"),
        ({"length_penalty": -1}, "length_penalty is -1"),
        ({"length_penalty": "1e300"}, "length_penalty is "),
        ({"length_penalty": "nan"}, "length_penalty is "),
        ({"beam": 1}, "must names 1 word:"),
        ({"temperature": 2}, "n_best, beam, length_penalty"),
    ],
    ids=str,
)
def test_options_that_are_refused(captioner, files, options, says):
    item = next(iter(files.items()))
    with serving(captioner, SearchConfig(beam=2, must="red"), max_beam=8) as client:
        form = client.post("/caption", files=[("files", item)], data={k: str(v) for k, v in options.items()})
        coded = client.post("/caption", json={"images": [packed(item[1])], **options})
    for answer in (form, coded):
        assert answer.status_code == 422, answer.text
        assert list(answer.json()) == ["error"]
        assert says in answer.json()["error"]


@pytest.mark.parametrize("value", [True, None, [1], {}, 2.5, "two"], ids=str)
def test_options_of_other_types(client, files, value):
    answer = client.post("/caption", json={"images": [packed(next(iter(files.values())))], "beam": value})
    assert answer.status_code == 422
    assert answer.json()["error"].endswith("expected a whole number")


def test_options_are_not_lost(client, files):
    """In the address they would have no effect; one sent twice has no clear one."""
    answer = client.post("/caption?n_best=2", files=[("files", next(iter(files.items())))])
    assert (answer.status_code, "in the body" in answer.json()["error"]) == (422, True)
    answer = client.post("/caption", files=[("f", next(iter(files.items())))], data={"beam": ["1", "2"]})
    assert (answer.status_code, answer.json()) == (422, {"error": "beam is sent twice"})
    answer = client.post(
        "/caption", content='{"images": [], "beam": 2, "beam": 2}', headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()) == (422, {"error": "beam is sent twice"})


def test_the_errors_of_several_images_are_objects(client):
    answer = post(client, ("a.jpg", b"no image"), ("b.jpg", b"nor this"))
    assert answer.status_code == 422
    content = answer.json()
    assert content["error"] == "none of the 2 images has a caption"
    assert [result["name"] for result in content["results"]] == ["a.jpg", "b.jpg"]
    assert all("not an image" in result["error"] for result in content["results"])


def test_the_first_page_says_what_there_is(client):
    content = client.get("/").json()
    assert (content["name"], content["model"], content["limits"]["max_images"]) == ("captioner", "tiny", 3)
    described = client.get("/openapi.json").json()["paths"]
    for path in content["paths"]:
        method, place = path.split()
        assert client.request(method, place).status_code in (200, 415), path
        assert place in described or place in ("/docs", "/openapi.json")
    page = client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    for target in set(re.findall(r'(?:href|action)="([^"]*)"', page.text)):
        assert client.get(f"/{target}").status_code in (200, 405), target
    assert "http://testserver/caption" in page.text


def test_the_name_of_a_model_is_no_html(captioner):
    with TestClient(make_app(captioner, SearchConfig(), ServeConfig(), "<script>alert(1)</script>")) as client:
        assert "<script" not in client.get("/", headers={"Accept": "text/html"}).text


def test_the_description_needs_no_network(client):
    """Every file that /docs loads comes from this server."""
    page = client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 3
    for target in loaded:
        assert target.startswith("/"), target
        assert len(client.get(target).content) > 100
    assert "://" not in page.replace("window.location.protocol + '//'", "")


def test_access_log(captioner, files, capfd):
    with serving(captioner) as client:
        post(client, next(iter(files.items())))
    assert capfd.readouterr().out == ""
    with serving(captioner, access_log=True) as client:
        post(client, next(iter(files.items())))
        client.get("/no%0Asuch")
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ testclient POST /caption 200 \d+\.\d{3} s", lines[0])
    assert " GET /no such 404 " in lines[1]


def test_cors(captioner, files):
    origin = {"Origin": "https://example.org"}
    asks = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    allowed = "access-control-allow-origin"
    with serving(captioner) as client:
        assert allowed not in client.get("/health", headers=origin).headers
    with serving(captioner, cors=["https://example.org", "http://localhost:3000"]) as client:
        for answer in (
            client.options("/caption", headers=asks),
            client.get("/health", headers=origin),
            client.post("/caption", headers=origin),  # 415: errors, too
        ):
            assert answer.headers[allowed] == "https://example.org"
        assert allowed not in client.get("/health", headers={"Origin": "https://other.org"}).headers
    with serving(captioner, cors=["*"]) as client:
        assert client.get("/health", headers=origin).headers[allowed] == "*"


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "ftp://a", "", "https://", "https://a b"])
def test_origins_that_are_none(captioner, origin):
    refused(
        make_app, captioner, SearchConfig(), ServeConfig(), "tiny", [origin], says=["--cors", "https://example.org"]
    )


def test_one_bad_image_among_good_ones_has_an_error(client, files):
    good = next(iter(files.items()))
    answer = post(client, ("bad.jpg", b"no image"), good)
    assert answer.status_code == 200
    bad, fine = answer.json()["results"]
    assert "not an image" in bad["error"]
    assert "caption" not in bad
    assert fine["caption"]


def large() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (200, 100)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"files": [("files", ("a.jpg", b"no image"))]}, 422, "not an image"),
        ({"files": [("files", ("a.jpg", b""))]}, 422, "empty|not an image"),
        ({"files": [("files", ("a.png", large()))]}, 422, "200 × 100: has more than 10,000 pixels"),
        ({"files": [("files", ("a.jpg", b"x" * 40_001))]}, 413, "a.jpg: 40,001 bytes, at most 40,000"),
        ({"files": [("files", ("a.jpg", b"x" * 250_000))]}, 413, "the request has more than 120,000 bytes"),
        ({"files": [("files", (f"{n}.jpg", b"x")) for n in range(4)]}, 413, "4 images|Too many files"),
        ({"files": [("files", (f"{n}.jpg", b"x")) for n in range(9)]}, 413, "Too many files"),
        ({"data": {"files": "text"}, "files": [("a", ("a.jpg", b"x"))]}, 422, "'files' is text"),
        ({"json": {"images": ["???"]}}, 422, "image 0: is not base64"),
        ({"json": {"images": []}}, 422, "no image"),
        ({"json": {"images": "abc"}}, 422, "list of strings"),
        ({"json": {"images": [1]}}, 422, "list of strings"),
        ({"json": {"pictures": []}}, 422, "expected"),
        ({"json": {"images": [], "urls": []}}, 422, "expected"),
        ({"json": [1]}, 422, "expected"),
        ({"json": {"urls": ["http://example.org/a.jpg"]}}, 422, "fetches no addresses"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "not JSON"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "not JSON"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "form cannot be read"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            422,
            "form cannot|no image",
        ),
        ({}, 415, "multipart"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refused_requests(client, request_, status, says):
    answer = client.post("/caption", **request_)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert re.search(says, answer.json()["error"]), answer.text
    assert "\n" not in answer.json()["error"]
    assert client.get("/health").json() == {"status": "ok"}


def test_other_paths_and_methods(client):
    assert client.get("/caption").status_code == 405
    assert client.get("/nothing").status_code == 404
    description = client.get("/openapi.json").json()["paths"]["/caption"]["post"]
    body = description["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert body["multipart/form-data"]["schema"]["properties"]["beam"]["default"] == 2
    assert {"200", "413", "415", "422", "503", "504"} <= set(description["responses"])


class Slow:
    """A model that captions only once `go` is set, and records the sizes of its batches."""

    def __init__(self, model):
        self.go, self.seen, self.model = threading.Event(), [], model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def search(self, images, config):
        self.go.wait(20)
        self.seen.append(len(images))
        return self.model.search(images, config)


def test_simultaneous_requests_share_a_batch(captioner, files):
    slow = Slow(captioner)
    with serving(slow, max_batch=4) as client, ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(post, client, item) for item in list(files.items()) * 2]
        time.sleep(0.5)
        slow.go.set()
        alone = {name: captioner.caption(Image.open(io.BytesIO(data)), beam=2) for name, data in files.items()}
        for answer in answers:
            (result,) = answer.result().json()["results"]
            assert result["caption"] == alone[result["name"]]
    assert sum(slow.seen) == 10
    assert max(slow.seen) == 4


def test_a_full_queue_and_a_late_answer(captioner, files):
    slow, one = Slow(captioner), next(iter(files.items()))
    with serving(slow, queue=1, max_batch=1, timeout=1.0) as client, ThreadPoolExecutor(8) as pool:
        answers = [answer.result() for answer in [pool.submit(post, client, one) for _ in range(6)]]
        assert {answer.status_code for answer in answers} == {503, 504}
        assert all(answer.headers.get("retry-after") == "1" for answer in answers if answer.status_code == 503)
        slow.go.set()
        until = time.monotonic() + 10
        while (status := post(client, one).status_code) == 503:  # the one that waits is still there
            assert time.monotonic() < until
        assert status == 200
    assert sum(slow.seen) <= 3  # those nobody waits for any more are not captioned


def test_a_failure_of_the_model_is_one_line_and_the_server_continues(captioner, files, monkeypatch, capfd):
    with serving(captioner) as client:
        with monkeypatch.context() as patch:
            patch.setattr(type(captioner), "search", lambda *_: 1 / 0)
            client.raise_server_exceptions = False
            answer = post(client, next(iter(files.items())))
        assert (answer.status_code, answer.json()) == (500, {"error": "the server failed to caption this"})
        assert post(client, next(iter(files.items()))).status_code == 200
    assert "ZeroDivisionError: division by zero" in capfd.readouterr().out


def test_metrics(client, files):
    post(client, *list(files.items())[:2])
    post(client, ("bad.jpg", b"x"))
    text = client.get("/metrics").text
    for line in (
        'captioner_requests_total{status="200"} 1.0',
        'captioner_requests_total{status="422"} 1.0',
        'captioner_images_total{outcome="captioned"} 2.0',
        'captioner_images_total{outcome="refused"} 1.0',
        "captioner_request_seconds_count 2.0",
        "captioner_batch_size_sum 2.0",
        "captioner_waiting_images 0.0",
    ):
        assert line in text, line


# ---- addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")),
        *((address, False) for address in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1")),
        *((address, False) for address in ("::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1")),
        *((address, False) for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1")),
        *((address, False) for address in ("192.0.0.8", "192.0.0.192", "fec0::1")),
    ],
)
def test_public_addresses(address, public):
    assert safe_fetch.is_public(address) == public


def test_file_names_with_broken_unicode(client, files):
    body = b'--x\r\ncontent-disposition: form-data; name="a"; filename="a\\ud800b.png"\r\n\r\nno image\r\n--x--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    assert client.post("/caption", content=body, headers=kind).status_code == 422


def test_very_many_images_are_counted_before_they_are_unpacked(client):
    answer = client.post("/caption", json={"images": ["*"] * 10})
    assert (answer.status_code, answer.json()) == (413, {"error": "10 images: at most 3 in a request"})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.jpg",
        "http://localhost/a.jpg",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://\ud800/",
        "http://169.254.169.254/latest/meta-data",
        "http://8.8.8.8:22/",
        "http://user:word@8.8.8.8/",
        "ftp://8.8.8.8/a.jpg",
        "file:///etc/passwd",
        "gopher://8.8.8.8/",
        "http://[::1",
        "http://8.8.8.8:http/",
        "nonsense",
        "",
    ],
)
def test_addresses_that_are_refused(captioner, url):
    with serving(captioner, allow_urls=True) as client:
        body = json.dumps({"urls": [url]})  # in ASCII, whatever it is
        answer = client.post("/caption", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert re.search("public host|expected http|only the ports|is not an address|no such host", answer.json()["error"])


@pytest.fixture
def host(monkeypatch, files):
    """A web server on this machine, which the name images.example.org is taken to mean."""
    seen = []
    image = next(iter(files.values()))

    async def answer(reader, writer):
        line = (await reader.readline()).decode()
        path = line.split()[1]
        seen.append(path)
        while (await reader.readline()).strip():
            pass
        moved = {"/in": "http://127.0.0.1/secret", "/loop": "/loop", "/moved": "/a.png"}.get(path)
        if moved:
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {moved}\r\nContent-Length: 0\r\n\r\n".encode())
        elif path == "/a.png":
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image)
        elif path == "/endless":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000)
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    real = safe_fetch.is_public
    monkeypatch.setattr(safe_fetch, "is_public", lambda address: address == "192.0.2.1" or real(address))
    plain_connect = safe_fetch.httpcore.AnyIOBackend.connect_tcp

    async def getaddrinfo(self, name, *arguments, **options):
        address = "192.0.2.1" if name == "images.example.org" else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80))]

    async def connect(self, name, wanted, **options):
        assert name == "192.0.2.1", "connects to the address that was checked, and only to that"
        return await plain_connect(self, "127.0.0.1", port, **options)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(safe_fetch.httpcore.AnyIOBackend, "connect_tcp", connect)
    yield seen
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.close()


def test_images_from_addresses(captioner, host, files):
    with serving(captioner, allow_urls=True, max_bytes=50_000) as client:

        def ask(path):
            return client.post("/caption", json={"urls": [f"http://images.example.org{path}"]})

        expected = captioner.caption(Image.open(io.BytesIO(next(iter(files.values())))), beam=2)
        for path in ("/a.png", "/moved"):
            assert [r["caption"] for r in ask(path).json()["results"]] == [expected]
        for path, says in (
            ("/in", "is not a public host"),
            ("/loop", "more than 3 redirects"),
            ("/endless", "more than 50,000 bytes"),
            ("/none", "the host answers with status 404"),
        ):
            answer = ask(path)
            assert answer.status_code == 422
            assert says in answer.json()["error"]
    assert "/secret" not in host


# ---- the command


def test_errors_of_serve_are_one_line(cli, tmp_path, weights):
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    checkpoint = tmp_path / "tiny.safetensors"
    make_captioner().save(checkpoint)
    code, _, err = cli("serve", "--checkpoint", checkpoint, "--port", taken.getsockname()[1])
    taken.close()
    assert code == 2
    assert is_one_line(err, "is not available", "--port")
    code, _, err = cli("serve", "--max_batch", 0)
    assert code == 2
    assert is_one_line(err, "max_batch", "1 or more")
    code, _, err = cli("serve", "--checkpoint", checkpoint, "--must", "unheard")
    assert code == 2
    assert is_one_line(err, "unheard")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_end(tmp_path, weights, files, number):
    checkpoint = tmp_path / "tiny.safetensors"
    make_captioner(trained=1).save(checkpoint)
    command = [sys.executable, "-m", "captioner", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--max_wait_ms", "1500"], cwd=ROOT, env=environment, **pipes)
    address = process.stdout.readline().split()[0]
    body = json.dumps({"images": [packed(next(iter(files.values())))]}).encode()
    request = urllib.request.Request(f"{address}caption", body, {"Content-Type": "application/json"})
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: urllib.request.urlopen(request, timeout=30).read())
        time.sleep(0.7)  # the request waits for company
        process.send_signal(number)
        assert json.loads(answer.result())["results"][0]["caption"]
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
