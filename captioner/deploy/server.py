"""Captions over HTTP: images are decoded in threads, gathered into batches across requests, captioned in one thread."""

from __future__ import annotations

import asyncio
import io
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from torch import Tensor

from captioner import __version__
from captioner.config import SearchConfig, ServeConfig
from captioner.data.images import ImageError, eval_transform, image_errors, open_image
from captioner.deploy.request_body import Source, describe_body, read_body, request_search
from captioner.deploy.safe_fetch import Refused, fetch
from captioner.errors import UserError, counted, printable
from captioner.models.base import NO_CAPTION, Caption, CaptionModel, search_ids
from captioner.reports.page import render

BUSY = {"Retry-After": "1"}
STATUSES = {  # besides 200
    413: "too many bytes or images",
    415: "neither a form nor JSON",
    422: "no image can be read, or the body is invalid",
    503: "too many images are waiting",
    504: "not done in time",
}
PATHS = {
    "POST /caption": "captions of images: a form with files, or JSON",
    "GET /docs": "every request and answer, to be tried in the browser",
    "GET /openapi.json": "the same for programs",
    "GET /health": "200 while the model works, else 503",
    "GET /metrics": "counters for Prometheus",
}
ORIGIN = re.compile(r"https?://[^/\s@?#]+")


class Batcher:
    """Captions images of many requests together, in a separate thread.

    While one batch is captioned the next one gathers; an idle model waits `max_wait_ms` for more images. When the
    model fails, every image of that batch gets the exception, and the next batch is captioned.
    """

    def __init__(self, model: CaptionModel, config: ServeConfig, sizes: Histogram) -> None:
        self.model, self.config, self.sizes = model, config, sizes
        self.waiting: queue.Queue[tuple[Tensor, SearchConfig, Future] | None] = queue.Queue(config.queue)  # None: stop
        self.thread = threading.Thread(target=self._run, name="captions", daemon=True)
        self.thread.start()

    def submit(self, image: Tensor, search: SearchConfig) -> Future:
        """(3, H, W) uint8 → a future of its captions, best first.

        Raises:
            queue.Full: too many images are waiting.
        """
        future: Future = Future()
        self.waiting.put_nowait((image, search, future))
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
            by_search: dict[SearchConfig, list[tuple[Tensor, Future]]] = {}
            for image, search, future in batch:
                if future.set_running_or_notify_cancel():
                    by_search.setdefault(search, []).append((image, future))
            for search, images in by_search.items():
                self._caption(search, images)

    def _caption(self, search: SearchConfig, batch: list[tuple[Tensor, Future]]) -> None:
        self.sizes.observe(len(batch))
        try:
            images = torch.stack([image for image, _ in batch])  # (I, 3, H, W)
            results = self.model.search(images.to(self.model.device), search)
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
        search_ids(model.vocabulary, search.for_model(model.max_length))  # fails here, not at the first request
        self.model, self.search, self.config, self.name = model, search, config, name
        self.metrics = Metrics()
        self.batcher = Batcher(model, config, self.metrics.batch_sizes)
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
            waiting = counted(self.config.queue, "image")
            raise HTTPException(503, f"the queue is full ({waiting}); try again", BUSY) from None

    async def _caption_request(self, request: Request) -> dict[str, Any]:
        sources, options = await read_body(request, self.config)
        search = self._search(options)
        results = await asyncio.gather(*(self._caption_image(name, source, search) for name, source in sources))
        if all("error" in result for result in results):
            one = len(results) == 1
            summary = results[0]["error"] if one else f"none of the {len(results)} images has a caption"
            raise HTTPException(422, {"error": summary} | ({} if one else {"results": results}))  # type: ignore[arg-type]
        return {"model": self.name, "results": results}

    def _search(self, options: dict[str, Any]) -> SearchConfig:
        """The search options of a request; HTTPException 422 if they are invalid for this model."""
        search = request_search(self.search, options, self.config.max_beam)
        try:
            search_ids(self.model.vocabulary, search.for_model(self.model.max_length))
        except UserError as error:  # a beam too narrow for the words of --must
            raise HTTPException(422, str(error)) from None
        return search

    async def _caption_image(self, name: str, source: Source, search: SearchConfig) -> dict[str, Any]:
        """The captions of an image, or its error."""
        config = self.config
        try:
            if isinstance(source, ImageError):
                raise source
            data = await fetch(source, config.max_bytes, config.timeout) if isinstance(source, str) else source
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self.decoders, decode, data, self.model.image_size, config.max_pixels)
            captions: list[Caption] = await asyncio.wrap_future(self.batcher.submit(image, search))
            if not captions:
                raise ImageError(NO_CAPTION)
        except (ImageError, Refused) as error:
            self.metrics.images.labels("refused").inc()
            return {"name": name, "error": printable(str(error))}
        self.metrics.images.labels("captioned").inc()
        results = [caption.as_dict() for caption in captions]
        return {"name": name, **results[0], **({"n_best": results} if search.n_best > 1 else {})}

    def overview(self) -> dict[str, Any]:
        """What GET / answers."""
        return {
            "name": "captioner",
            "version": __version__,
            "model": self.name,
            "paths": PATHS,
            "search": {name: getattr(self.search, name) for name in ("beam", "n_best", "length_penalty")},
            "limits": asdict(self.config),
        }


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


def make_app(
    model: CaptionModel, search: SearchConfig, config: ServeConfig, name: str, cors: Sequence[str] = ()
) -> FastAPI:
    """The web application of a model.

    Args:
        model: in evaluation mode, on its device.
        search: the search options of requests that name none.
        config: the limits.
        name: of the model, in the answers.
        cors: origins whose pages may send requests, such as https://example.org; ``*`` is any.

    Raises:
        UserError: a model of clips and albums, search options that do not fit the vocabulary, or an invalid origin.
    """
    for origin in cors:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors {origin!r} is no origin: name a scheme and a host, such as https://example.org, or *"
            )
    service = CaptionService(model, search, config, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    ui = {"validatorUrl": None}  # nothing is sent to swagger.io
    app = FastAPIOffline(
        redoc_url=None, title="captioner", version=__version__, lifespan=lifespan, swagger_ui_parameters=ui
    )
    _add_routes(app, service)
    _add_errors_and_times(app, service)
    if cors:  # outside the others, so that errors can be read, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
            expose_headers=list(BUSY),
        )
    return app


def _add_routes(app: FastAPI, service: CaptionService) -> None:
    responses: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in STATUSES.items()}

    @app.get("/", include_in_schema=False)
    async def overview(request: Request) -> Response:
        """What there is: a page for browsers, JSON for others."""
        content = service.overview()
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse(content)
        return HTMLResponse(render("deploy/server_index.html", base=str(request.base_url).rstrip("/"), **content))

    @app.post("/caption", openapi_extra=describe_body(service.search), responses=responses)
    async def caption(request: Request) -> dict[str, Any]:
        """Caption one or several images.

        The results come in the order of the images. An image that cannot be read has an `error` instead of a caption;
        when no image can be read, the status is 422. Every error is an object whose `error` is one line. `n_best`,
        `beam` and `length_penalty` replace the options of the server.
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


def _add_errors_and_times(app: FastAPI, service: CaptionService) -> None:
    """Answer errors as {"error": "one line"}; count requests and their seconds, and log them if asked to."""
    metrics = service.metrics

    @app.middleware("http")
    async def measure(request: Request, call: Any) -> Response:
        began = time.perf_counter()
        try:
            response = await call(request)
        except Exception as error:  # a bug of the server or the model: details go to the log only
            print(f"captioner serve: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            response = JSONResponse({"error": "the server failed to caption this"}, 500)
        seconds = time.perf_counter() - began
        if request.url.path == "/caption":
            metrics.requests.labels(response.status_code).inc()
            metrics.seconds.observe(seconds)
        if service.config.access_log:
            _log_request(request, response.status_code, seconds)
        return response

    @app.exception_handler(HTTPException)
    async def answer_error(_: Request, error: HTTPException) -> Response:
        content: Any = error.detail
        if not isinstance(content, dict):
            content = {"error": content + (": GET / lists what there is" if error.status_code == 404 else "")}
        return JSONResponse(content, error.status_code, error.headers)


def _log_request(request: Request, status: int, seconds: float) -> None:
    """Print a line: the time, who asked for what, the status and the seconds until the answer began."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    client = request.client.host if request.client else "-"
    print(f"{when} {client} {request.method} {printable(request.scope['path'])} {status} {seconds:.3f} s", flush=True)
