"""The body of a request to /caption: images in a form or in JSON, and the search options that it may set."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from captioner.config import SearchConfig, ServeConfig
from captioner.data.images import ImageError
from captioner.errors import UserError, counted, printable

FORM_BYTES = 64 * 1024  # of a request besides its images
Source = bytes | str | ImageError  # of an image: the bytes of its file, an address, or the error
Content = tuple[list[tuple[str, Source]], dict[str, Any]]  # the name and source of each image; the options

# The fields of SearchConfig that a request may set
OPTIONS: dict[str, tuple[type, str]] = {
    "n_best": (int, "a whole number"),
    "beam": (int, "a whole number"),
    "length_penalty": (float, "a number"),
}
EXPECTED = 'expected {"images": ["<base64>", …]} or {"urls": ["https://…", …]}, and beside it only ' + ", ".join(
    OPTIONS
)

# For /openapi.json: FastAPI does not see the body, which is read here
_STRINGS = {"type": "array", "items": {"type": "string"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_OPTIONS = {
    "n_best": {"type": "integer", "minimum": 1, "description": "captions of each image, at most as many as the beam"},
    "beam": {"type": "integer", "minimum": 1, "description": "beam width; 1 is greedy"},
    "length_penalty": {"type": "number", "minimum": 0, "description": "0 favours short captions"},
}


def describe_body(search: SearchConfig) -> dict[str, Any]:
    """The body for /openapi.json, with the search options of the server as defaults."""
    options = {name: {**schema, "default": getattr(search, name)} for name, schema in _OPTIONS.items()}
    form = {"schema": {"type": "object", "properties": {"files": _FILES, **options}}}
    as_json = {
        "schema": {"type": "object", "properties": {"images": _STRINGS, "urls": _STRINGS, **options}},
        "example": {"images": ["<base64>"], "n_best": 3},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form, "application/json": as_json}}}


def request_search(search: SearchConfig, options: Mapping[str, Any], widest: int) -> SearchConfig:
    """The search options of a request: those of the server, and in place of some those of the body.

    Raises:
        HTTPException: 422, a value is invalid, or a width is above `widest`.
    """
    for name in ("beam", "n_best"):
        if options.get(name, 0) > max(widest, getattr(search, name)):
            raise HTTPException(422, f"{name} is {options[name]:,}: at most {widest} on this server (--max_beam)")
    try:
        return replace(search, **options)
    except UserError as error:
        raise HTTPException(422, str(error)) from None


async def read_body(request: Request, config: ServeConfig) -> Content:
    """The images and options of a request.

    Raises:
        HTTPException: 413 too large, 415 another content type, 422 an invalid body.
    """
    if request.query_params:
        raise HTTPException(422, f"the address has {'?' + request.url.query!r:.60}: send options in the body")
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
        sources, options = await asyncio.to_thread(_read_json, bytes(body), config)  # takes up to a second
    else:
        sources, options = await _read_form(request, bytes(body), config)
    if not sources:
        raise HTTPException(422, "no image: send files, images or urls")
    for name, source in sources:
        if isinstance(source, bytes) and len(source) > config.max_bytes:
            raise HTTPException(413, f"{name}: {len(source):,} bytes, at most {config.max_bytes:,} for an image")
    return sources, options


async def _read_form(request: Request, body: bytes, config: ServeConfig) -> Content:
    """The files of a form, under any field names, and the options among its text fields."""
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=config.max_images, max_fields=8)
    try:
        form = await parser.parse()
    except Exception as error:  # starlette raises almost anything for malformed headers
        reason = error.message if isinstance(error, MultiPartException) else type(error).__name__
        raise HTTPException(413 if "Too many files" in reason else 422, f"the form cannot be read: {reason}") from None
    sources: list[tuple[str, Source]] = []
    options: dict[str, Any] = {}
    for field, value in form.multi_items():
        if not isinstance(value, str):
            sources.append((printable(value.filename or field), await value.read()))
        elif field in options:
            raise HTTPException(422, f"{field} is sent twice")
        elif field in OPTIONS:
            options[field] = _parse_option(field, value)
        else:
            other = f"text fields are {', '.join(OPTIONS)}"
            raise HTTPException(422, f"the field {printable(field)!r:.60} is text: send images as files; {other}")
    return sources, options


def _parse_option(name: str, text: str) -> Any:
    kind, expected = OPTIONS[name]
    try:
        return kind(text)
    except ValueError:
        raise HTTPException(422, f"{name} is {printable(text)!r:.60}: expected {expected}") from None


def _read_json(body: bytes, config: ServeConfig) -> Content:
    """The base64 images, or the addresses, of a JSON object, and its options."""
    try:
        content = json.loads(body, object_pairs_hook=_sent_once)
    except (ValueError, RecursionError):
        raise HTTPException(422, "the body is not JSON") from None
    if not isinstance(content, dict):
        raise HTTPException(422, EXPECTED)
    options = {name: content.pop(name) for name in OPTIONS if name in content}
    if len(content) != 1 or not {"images", "urls"} >= content.keys():
        raise HTTPException(422, EXPECTED)
    for name, value in options.items():
        kind, expected = OPTIONS[name]
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise HTTPException(422, f"{name} is {str(value)!r:.60}: expected {expected}")
    ((kind_of_source, values),) = content.items()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise HTTPException(422, f"{kind_of_source!r} must be a list of strings")
    if len(values) > config.max_images:
        raise HTTPException(413, f"{counted(len(values), 'image')}: at most {config.max_images} in a request")
    if kind_of_source == "images":
        return [(f"image {number}", _decode_base64(number, value)) for number, value in enumerate(values)], options
    if not config.allow_urls:
        raise HTTPException(422, "this server fetches no addresses (--allow_urls): send the images")
    return [(printable(url), url) for url in values], options


def _sent_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON's pairs; HTTPException if a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise HTTPException(422, f"{printable(twice):.60} is sent twice")
    return found


def _decode_base64(number: int, text: str) -> bytes | ImageError:
    """The bytes of base64 or of a data: URI."""
    try:
        return base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:") else text, validate=True)
    except ValueError:
        return ImageError(f"image {number}: is not base64")
