"""Find the weights that come with captioner, the shipped model and the ImageNet network it needs, and cache them.

They are no part of the package captioner: a clone of the repository has them in ``checkpoints/``, and the package
``captioner-weights`` has the same files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from captioner import __version__
from captioner.errors import REPOSITORY, UserError
from captioner.files import atomic_write

MODEL = "captioner.safetensors"
PLACES = "CAPTIONER_WEIGHTS, checkpoints/ of a clone, the package captioner-weights and the cache"


def known_digests() -> dict[str, str]:
    """The SHA-256 of each file of this version, by its name."""
    lines = Path(__file__).with_name("weights.sha256").read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def places(name: str) -> Iterator[tuple[str, Path]]:
    """Where a file is looked for, first to last: what the place is called, and the path there.

    UserError if CAPTIONER_WEIGHTS is not a folder.
    """
    if given := os.environ.get("CAPTIONER_WEIGHTS"):
        if not os.path.isdir(given):
            raise UserError(f"CAPTIONER_WEIGHTS is {given}: expected a folder with {name}")
        yield "CAPTIONER_WEIGHTS", Path(given, name)
    if REPOSITORY:
        yield "the repository", REPOSITORY / "checkpoints" / name
    package = find_spec("captioner_weights")
    for folder in (package and package.submodule_search_locations) or ():
        yield "the package captioner-weights", Path(folder, name)
    yield "the cache", cache_path(name)


def find_weights(name: str = MODEL) -> Path:
    """The file of these weights in the first of the :func:`places` that has it; UserError if none has."""
    for _, path in places(name):
        if path.is_file():
            return path
    raise UserError(
        f"there is no {name} in {PLACES}: install captioner-weights (docs/install.md), or name a copy of the file or "
        "its address: captioner weights --from FILE|URL"
    )


def cache_folder() -> Path:
    """The folder of weights in the user's cache, such as ~/.cache/captioner/weights."""
    from platformdirs import user_cache_path

    return user_cache_path("captioner", appauthor=False) / "weights"


def cache_path(name: str) -> Path:
    """Where the cache has a file of this version: in a folder named after its SHA-256, so that versions keep apart."""
    return cache_folder() / known_digests()[name][:16] / name


def add_to_cache(source: str) -> list[Path]:
    """Copy weights of this version into the user's cache; the paths there.

    `source` is a file, a folder with some of the files, or an http(s) address. Which file it is follows from its
    SHA-256, not from its name; UserError if it is none of this version's.
    """
    if re.match("https?://", source):
        return [_add_address(source)]
    if os.path.isdir(source):
        files = [Path(source, name) for name in known_digests() if Path(source, name).is_file()]
        if not files:
            raise UserError(f"{source} has none of {', '.join(known_digests())}: name the folder that has them")
        return [_add_file(file, str(file)) for file in files]
    if not os.path.isfile(source):
        raise UserError(f"{source}: no such file; expected a file, a folder or an http(s) address")
    return [_add_file(Path(source), source)]


def _add_address(address: str) -> Path:
    from captioner.datasets.download import download

    incoming = cache_folder() / "incoming" / (Path(urlsplit(address).path).name or "weights")
    try:
        incoming.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache {incoming.parent} cannot be written ({error.strerror}): fix the permissions"
        ) from None
    download([address], incoming)
    try:
        return _add_file(incoming, address)
    finally:
        incoming.unlink(missing_ok=True)


def _add_file(file: Path, source: str) -> Path:
    digest = sha256(file)
    names = {digest: name for name, digest in known_digests().items()}
    if digest not in names:
        raise UserError(
            f"{source} is none of the weights of captioner {__version__} (its SHA-256 is {digest}): fetch it again, or "
            "put a file of your own into a folder and name that in CAPTIONER_WEIGHTS"
        )
    final = cache_path(names[digest])
    with atomic_write(final) as part:
        shutil.copyfile(file, part)
    return final


def sha256(file: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
