"""Captions over HTTP: requests' images are decoded in threads, gathered into batches and captioned by one thread."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from torch import Tensor

from captioner import __version__
from captioner.config import SearchConfig, ServeConfig
from captioner.data.images import ImageError, eval_transform, image_errors, open_image
from captioner.deploy.safe_fetch import Refused, fetch
from captioner.errors import UserError, printable
from captioner.models.base import NO_CAPTION, Caption, CaptionModel, search_ids

FORM = 64 * 1024  # bytes of a request besides its images
BUSY = {"Retry-After": "1"}


class Batcher:
    """Captions images of many requests together, in a thread of its own.

    While one batch is captioned the next one gathers; an idle model waits `max_wait_ms` for company. Nothing is lost: a
    failure of the model is the answer to every image of that batch.
    """

    def __init__(self, model: CaptionModel, search: SearchConfig, config: ServeConfig, sizes: Histogram) -> None:
        search_ids(model.vocabulary, search)  # complain before the first request
        self.model, self.search, self.config, self.sizes = model, search, config, sizes
        self.waiting: queue.Queue[tuple[Tensor, Future] | None] = queue.Queue(config.queue)
        self.thread = threading.Thread(target=self._work, name="captions", daemon=True)
        self.thread.start()

    def submit(self, image: Tensor) -> Future:
        """(3, H, W) uint8 → its captions, best first, to come.

        Raises:
            queue.Full: too many are waiting.
        """
        future: Future = Future()
        self.waiting.put_nowait((image, future))
        return future

    def close(self) -> None:
        """Caption what waits, then end."""
        self.waiting.put(None)
        self.thread.join()

    def _work(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch, until, more = [first], time.monotonic() + self.config.max_wait_ms / 1000, True
            while more and len(batch) < self.config.max_batch:
                try:
                    item = self.waiting.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if item is None:
                    self.waiting.put(None)
                    more = False
                else:
                    batch.append(item)
            self._caption([(image, future) for image, future in batch if future.set_running_or_notify_cancel()])

    def _caption(self, batch: list[tuple[Tensor, Future]]) -> None:
        self.sizes.observe(len(batch))
        try:
            images = torch.stack([image for image, _ in batch]) if batch else torch.empty(0)  # (I, 3, H, W)
            for (_, future), captions in zip(
                batch, self.model.search(images.to(self.model.device), self.search), strict=True
            ):
                future.set_result(captions)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)


def decode(data: bytes, size: int, most: int) -> Tensor:
    """An image file → what a model sees, (3, size, size) uint8.

    Raises:
        ImageError: it is no image, damaged, or has more pixels than `most`.
    """
    with image_errors(data), Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > most:
            raise ImageError(f"image of {image.width} × {image.height}: has more than {most:,} pixels; scale it down")
    return eval_transform(open_image(data, size_hint=size), size)


def make_app(model: CaptionModel, search: SearchConfig, config: ServeConfig, name: str) -> FastAPI:
    """The web application of a model.

    Args:
        model: in evaluation mode, on its device.
        search: of all requests.
        config: the limits.
        name: what the answers call the model.

    Raises:
        UserError: a model of clips and albums, or a search that the vocabulary does not allow.
    """
    if model.frames:
        raise UserError("serve captions images, and this model captions clips and albums: use captioner predict")
    registry = CollectorRegistry()
    requests = Counter("captioner_requests", "requests to /caption", ["status"], registry=registry)
    images = Counter("captioner_images", "images of these", ["outcome"], registry=registry)
    seconds = Histogram("captioner_request_seconds", "from the first byte to the answer", registry=registry)
    sizes = Histogram("captioner_batch_size", "captioned together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry)
    waiting = Gauge("captioner_waiting_images", "not yet in a batch", registry=registry)
    batcher = Batcher(model, search, config, sizes)
    waiting.set_function(batcher.waiting.qsize)
    threads = ThreadPoolExecutor(config.decoders, "decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        threads.shutdown()
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="captioner", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    async def one(title: str, source: bytes | str | ImageError) -> dict[str, Any]:
        """The captions of an image, or why it has none."""
        try:
            if isinstance(source, ImageError):
                raise source
            data = await fetch(source, config.max_bytes, config.timeout) if isinstance(source, str) else source
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(threads, decode, data, model.image_size, config.max_pixels)
            found: list[Caption] = await asyncio.wrap_future(batcher.submit(image))
        except (ImageError, Refused) as error:
            images.labels("refused").inc()
            return {"name": title, "error": printable(str(error))}
        images.labels("captioned" if found else "refused").inc()
        if not found:
            return {"name": title, "error": NO_CAPTION}
        best, *_ = answers = [caption.as_dict() for caption in found]
        return {"name": title, **best, **({"n_best": answers} if search.n_best > 1 else {})}

    async def answer(request: Request) -> dict[str, Any]:
        sources = await read(request, config)
        results = await asyncio.gather(*(one(title, source) for title, source in sources))
        if all("error" in result for result in results):
            raise HTTPException(422, results[0]["error"] if len(results) == 1 else json.dumps(results))
        return {"model": name, "results": results}

    @app.post("/caption", openapi_extra=OPENAPI, responses=RESPONSES)
    async def caption(request: Request) -> dict[str, Any]:
        """Caption one or several images.

        The results come in the order of the images. One that cannot be read has an `error` instead of a caption;
        where that is so of all, the status is 422.
        """
        try:
            return await asyncio.wait_for(answer(request), config.timeout)
        except asyncio.TimeoutError:
            raise HTTPException(504, f"not done in {config.timeout:g} s; send fewer images or try later") from None
        except queue.Full:
            raise HTTPException(503, f"{config.queue} images are waiting already; try again", BUSY) from None

    @app.middleware("http")
    async def measure(request: Request, call: Any) -> Response:
        began = time.perf_counter()
        try:
            response = await call(request)
        except Exception as error:  # a failure of ours: the line is for the log, not for the world
            print(f"captioner serve: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            response = JSONResponse({"error": "the server failed to caption this"}, 500)
        if request.url.path == "/caption":
            requests.labels(response.status_code).inc()
            seconds.observe(time.perf_counter() - began)
        return response

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.get("/health")
    async def health() -> Response:
        """200 while the model works, else 503."""
        alive = batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the model has stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def read(request: Request, config: ServeConfig) -> list[tuple[str, bytes | str | ImageError]]:
    """The images of a request: name, and bytes, or an address to fetch, or why there are none.

    Raises:
        HTTPException: 413 too large, 415 another type, 422 what cannot be understood.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    most = config.max_images * config.max_bytes
    if kind == "application/json":
        most = most * 4 // 3  # base64
    elif kind != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data with files, or application/json with images")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > min(most, config.max_request) + FORM:
            raise HTTPException(413, f"the request has more than {min(most, config.max_request):,} bytes")
    if kind == "application/json":
        sources = await asyncio.to_thread(_json, bytes(body), config)  # it may take a second
    else:
        sources = await _form(request, bytes(body), config)
    if not sources:
        raise HTTPException(422, "no image: send files, images or urls")
    if len(sources) > config.max_images:
        raise HTTPException(413, f"{len(sources)} images: at most {config.max_images} in a request")
    for title, source in sources:
        if isinstance(source, bytes) and len(source) > config.max_bytes:
            raise HTTPException(413, f"{title}: {len(source):,} bytes, at most {config.max_bytes:,} for an image")
    return sources


async def _form(request: Request, body: bytes, config: ServeConfig) -> list[tuple[str, Any]]:
    """The files of a form, under whichever field names."""

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    from starlette.formparsers import MultiPartException, MultiPartParser

    parser = MultiPartParser(request.headers, once(), max_files=config.max_images + 1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        many = "Too many files" in error.message
        raise HTTPException(413 if many else 422, f"the form cannot be read: {error.message}") from None
    except Exception as error:  # of headers that make no sense
        raise HTTPException(422, f"the form cannot be read ({type(error).__name__})") from None
    sources = []
    for field, value in form.multi_items():
        if isinstance(value, str):
            raise HTTPException(422, f"the field {field!r} is text: send images as files")
        sources.append((printable(value.filename or field), await value.read()))
    return sources


def _json(body: bytes, config: ServeConfig) -> list[tuple[str, Any]]:
    """The base64 images, or addresses, of a JSON object."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(422, "the body is not JSON") from None
    if not isinstance(content, dict) or len(content) != 1 or not {"images", "urls"} >= content.keys():
        raise HTTPException(422, 'expected {"images": ["<base64>", …]} or {"urls": ["https://…", …]}')
    (kind, values), *_ = content.items()
    if isinstance(values, list) and len(values) > config.max_images:
        raise HTTPException(413, f"{len(values):,} images: at most {config.max_images} in a request")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise HTTPException(422, f"{kind!r} has to be a list of strings")
    if kind == "urls":
        if not config.allow_urls:
            raise HTTPException(422, "this server fetches no addresses (--allow_urls): send the images")
        return [(printable(url), url) for url in values]
    return [(f"image {number}", _unpacked(number, value)) for number, value in enumerate(values)]


def _unpacked(number: int, text: str) -> bytes | ImageError:
    """base64, or a data: URI of it."""
    try:
        return base64.b64decode(
            text.split(",", 1)[1] if text.startswith("data:") and "," in text else text, validate=True
        )
    except (binascii.Error, ValueError):
        return ImageError(f"image {number}: is not base64")


RESPONSES: dict[int | str, Any] = {
    413: {"description": "too many bytes or images"},
    415: {"description": "neither a form nor JSON"},
    422: {"description": "no image can be captioned"},
    503: {"description": "too many are waiting"},
    504: {"description": "not done in time"},
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_STRINGS = {"type": "array", "items": {"type": "string"}}
OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"files": _FILES}}},
            "application/json": {"schema": {"type": "object", "properties": {"images": _STRINGS, "urls": _STRINGS}}},
        },
    }
}
