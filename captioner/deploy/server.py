"""Captions over HTTP: images are decoded in threads, gathered into batches across requests, captioned in one thread."""

from __future__ import annotations

import asyncio
import base64
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

FORM_BYTES = 64 * 1024  # of a request besides its images
BUSY = {"Retry-After": "1"}
Source = bytes | str | ImageError  # of an image: the bytes of its file, an address, or the error

# For /openapi.json: FastAPI does not see the body, which /caption reads itself
_STRINGS = {"type": "array", "items": {"type": "string"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"files": _FILES}}}
_JSON = {"schema": {"type": "object", "properties": {"images": _STRINGS, "urls": _STRINGS}}}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": _FORM, "application/json": _JSON}}}
STATUSES = (413, 415, 422, 503, 504)  # besides 200


class Batcher:
    """Captions images of many requests together, in a separate thread.

    While one batch is captioned the next one gathers; an idle model waits `max_wait_ms` for more images. When the
    model fails, every image of that batch gets the exception, and the next batch is captioned.
    """

    def __init__(self, model: CaptionModel, search: SearchConfig, config: ServeConfig, sizes: Histogram) -> None:
        search_ids(model.vocabulary, search.for_model(model.max_length))  # fails here, not at the first request
        self.model, self.search, self.config, self.sizes = model, search, config, sizes
        self.waiting: queue.Queue[tuple[Tensor, Future] | None] = queue.Queue(config.queue)  # None: stop
        self.thread = threading.Thread(target=self._run, name="captions", daemon=True)
        self.thread.start()

    def submit(self, image: Tensor) -> Future:
        """(3, H, W) uint8 → a future of its captions, best first.

        Raises:
            queue.Full: too many images are waiting.
        """
        future: Future = Future()
        self.waiting.put_nowait((image, future))
        return future

    def close(self) -> None:
        """Caption the waiting images, then stop."""
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch, deadline = [first], time.monotonic() + self.config.max_wait_ms / 1000
            while len(batch) < self.config.max_batch:
                try:
                    item = self.waiting.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if item is None:
                    self.waiting.put(None)  # stop after this batch
                    break
                batch.append(item)
            self._caption([(image, future) for image, future in batch if future.set_running_or_notify_cancel()])

    def _caption(self, batch: list[tuple[Tensor, Future]]) -> None:
        self.sizes.observe(len(batch))
        try:
            images = torch.stack([image for image, _ in batch]) if batch else torch.empty(0)  # (I, 3, H, W)
            results = self.model.search(images.to(self.model.device), self.search)
            for (_, future), captions in zip(batch, results, strict=True):
                future.set_result(captions)
        except Exception as error:  # any error of the model is raised again by the requests
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)


class Metrics:
    """The counters of GET /metrics."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("captioner_requests", "requests to /caption", ["status"], registry=registry)
        self.images = Counter("captioner_images", "images of these", ["outcome"], registry=registry)
        self.seconds = Histogram("captioner_request_seconds", "from the first byte to the answer", registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch_sizes = Histogram("captioner_batch_size", "captioned together", buckets=sizes, registry=registry)
        self.waiting = Gauge("captioner_waiting_images", "not yet in a batch", registry=registry)


class CaptionService:
    """The service behind the web application; see :func:`make_app` for the arguments."""

    def __init__(self, model: CaptionModel, search: SearchConfig, config: ServeConfig, name: str) -> None:
        if model.frames:
            raise UserError("serve captions images, but this model captions clips and albums: use captioner predict")
        self.image_size, self.n_best, self.config, self.name = model.image_size, search.n_best, config, name
        self.metrics = Metrics()
        self.batcher = Batcher(model, search, config, self.metrics.batch_sizes)
        self.metrics.waiting.set_function(self.batcher.waiting.qsize)
        self.decoders = ThreadPoolExecutor(config.decoders, "decode")

    async def close(self) -> None:
        """Finish the images that have been submitted."""
        self.decoders.shutdown()
        await asyncio.to_thread(self.batcher.close)

    async def respond(self, request: Request) -> dict[str, Any]:
        """The answer to a request to /caption; HTTPException for one of STATUSES."""
        try:
            return await asyncio.wait_for(self._caption_request(request), self.config.timeout)
        except asyncio.TimeoutError:
            seconds = f"{self.config.timeout:g} s"
            raise HTTPException(504, f"not done in {seconds}; send fewer images or try later") from None
        except queue.Full:
            raise HTTPException(503, f"{self.config.queue} images are waiting already; try again", BUSY) from None

    async def _caption_request(self, request: Request) -> dict[str, Any]:
        sources = await read_sources(request, self.config)
        results = await asyncio.gather(*(self._caption_image(name, source) for name, source in sources))
        if all("error" in result for result in results):
            raise HTTPException(422, results[0]["error"] if len(results) == 1 else json.dumps(results))
        return {"model": self.name, "results": results}

    async def _caption_image(self, name: str, source: Source) -> dict[str, Any]:
        """The captions of an image, or its error."""
        config = self.config
        try:
            if isinstance(source, ImageError):
                raise source
            data = await fetch(source, config.max_bytes, config.timeout) if isinstance(source, str) else source
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self.decoders, decode, data, self.image_size, config.max_pixels)
            captions: list[Caption] = await asyncio.wrap_future(self.batcher.submit(image))
            if not captions:
                raise ImageError(NO_CAPTION)
        except (ImageError, Refused) as error:
            self.metrics.images.labels("refused").inc()
            return {"name": name, "error": printable(str(error))}
        self.metrics.images.labels("captioned").inc()
        results = [caption.as_dict() for caption in captions]
        return {"name": name, **results[0], **({"n_best": results} if self.n_best > 1 else {})}


def decode(data: bytes, size: int, max_pixels: int) -> Tensor:
    """An image file → the model's input, (3, size, size) uint8.

    Raises:
        ImageError: it is not an image, is damaged, or has more than `max_pixels`.
    """
    with image_errors(data), Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > max_pixels:
            what = f"image of {image.width} × {image.height}"
            raise ImageError(f"{what}: has more than {max_pixels:,} pixels; scale it down")
    return eval_transform(open_image(data, size_hint=size), size)


def make_app(model: CaptionModel, search: SearchConfig, config: ServeConfig, name: str) -> FastAPI:
    """The web application of a model.

    Args:
        model: in evaluation mode, on its device.
        search: the search options of all requests.
        config: the limits.
        name: of the model, in the answers.

    Raises:
        UserError: a model of clips and albums, or search options that do not fit the vocabulary.
    """
    service = CaptionService(model, search, config, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(title="captioner", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_routes(app, service)
    _add_errors_and_times(app, service.metrics)
    return app


def _add_routes(app: FastAPI, service: CaptionService) -> None:
    @app.post("/caption", openapi_extra=BODY, responses={status: {} for status in STATUSES})
    async def caption(request: Request) -> dict[str, Any]:
        """Caption one or several images.

        The results come in the order of the images. An image that cannot be read has an `error` instead of a caption;
        when no image can be read, the status is 422. It is 413 for too many bytes or images, 415 for neither a form
        nor JSON, 503 while too many images are waiting, and 504 for captions that are not done in time.
        """
        return await service.respond(request)

    @app.get("/health")
    async def health() -> Response:
        """200 while the model works, else 503."""
        alive = service.batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the model has stopped"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors_and_times(app: FastAPI, metrics: Metrics) -> None:
    """Answer errors as {"error": "one line"}, and count requests and their seconds."""

    @app.middleware("http")
    async def measure(request: Request, call: Any) -> Response:
        began = time.perf_counter()
        try:
            response = await call(request)
        except Exception as error:  # a bug of the server or the model: details go to the log only
            print(f"captioner serve: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            response = JSONResponse({"error": "the server failed to caption this"}, 500)
        if request.url.path == "/caption":
            metrics.requests.labels(response.status_code).inc()
            metrics.seconds.observe(time.perf_counter() - began)
        return response

    @app.exception_handler(HTTPException)
    async def answer_error(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def read_sources(request: Request, config: ServeConfig) -> list[tuple[str, Source]]:
    """The name and source of each image of a request.

    Raises:
        HTTPException: 413 too large, 415 another content type, 422 an invalid body.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise HTTPException(415, "send multipart/form-data with files, or application/json with images")
    is_json = kind == "application/json"  # in base64, 4 characters for 3 bytes
    limit = min(config.max_images * config.max_bytes * (4 if is_json else 3) // 3, config.max_request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit + FORM_BYTES:
            raise HTTPException(413, f"the request has more than {limit:,} bytes")
    if is_json:
        sources = await asyncio.to_thread(_json_sources, bytes(body), config)  # takes up to a second
    else:
        sources = await _form_sources(request, bytes(body), config)
    if not sources:
        raise HTTPException(422, "no image: send files, images or urls")
    for name, source in sources:
        if isinstance(source, bytes) and len(source) > config.max_bytes:
            raise HTTPException(413, f"{name}: {len(source):,} bytes, at most {config.max_bytes:,} for an image")
    return sources


async def _form_sources(request: Request, body: bytes, config: ServeConfig) -> list[tuple[str, Any]]:
    """The files of a form, under any field names."""
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=config.max_images, max_fields=8)
    try:
        form = await parser.parse()
    except Exception as error:  # starlette raises almost anything for malformed headers
        reason = error.message if isinstance(error, MultiPartException) else type(error).__name__
        raise HTTPException(413 if "Too many files" in reason else 422, f"the form cannot be read: {reason}") from None
    sources = []
    for field, value in form.multi_items():
        if isinstance(value, str):
            raise HTTPException(422, f"the field {field!r} is text: send images as files")
        sources.append((printable(value.filename or field), await value.read()))
    return sources


def _json_sources(body: bytes, config: ServeConfig) -> list[tuple[str, Any]]:
    """The base64 images, or the addresses, of a JSON object."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(422, "the body is not JSON") from None
    if not isinstance(content, dict) or len(content) != 1 or not {"images", "urls"} >= content.keys():
        raise HTTPException(422, 'expected {"images": ["<base64>", …]} or {"urls": ["https://…", …]}')
    ((kind, values),) = content.items()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise HTTPException(422, f"{kind!r} must be a list of strings")
    if len(values) > config.max_images:
        raise HTTPException(413, f"{len(values):,} images: at most {config.max_images} in a request")
    if kind == "images":
        return [(f"image {number}", _decode_base64(number, value)) for number, value in enumerate(values)]
    if not config.allow_urls:
        raise HTTPException(422, "this server fetches no addresses (--allow_urls): send the images")
    return [(printable(url), url) for url in values]


def _decode_base64(number: int, text: str) -> bytes | ImageError:
    """The bytes of base64 or of a data: URI."""
    try:
        return base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:") else text, validate=True)
    except ValueError:
        return ImageError(f"image {number}: is not base64")
