"""Find, read, validate and write checkpoint files, which hold plain values and tensors only."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.config import MAX_LENGTH, ModelConfig
from captioner.data.vocabulary import SPECIAL, Vocabulary, is_word
from captioner.errors import UserError, install_hint, one_line
from captioner.files import atomic_write
from captioner.models.weights import find_weights, sha256

if TYPE_CHECKING:
    from torch import Tensor

SHIPPED_NAME = "shipped"  # on the command line; ./shipped is a file or folder
FORMAT = 1
MOST_WORDS = 10_000  # of a caption; as many characters are read
DEFAULTS = {field.name: field.default for field in fields(ModelConfig)}
# Those that a language model has.
LANGUAGE_OPTIONS = ("cell", "layers", "hidden_size", "embedding_size", "dropout", "input_dropout", "tie_embeddings")
HUB_FILES = ("model.safetensors", "captioner.safetensors")
# The checkpoint of a folder: the first of these that it has. A run in progress has only best.ckpt.
FOLDER_FILES = (*HUB_FILES, "lm.safetensors", "best.ckpt")
NO_WEIGHTS = "it is not a file of weights, or has code in it, which is not run"
# What torch.load and its unpickler raise for damaged bytes.
TORCH_ERRORS: tuple[type[Exception], ...] = (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, ValueError)
TORCH_ERRORS += (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)


def resolve_checkpoint(path: str | os.PathLike | None) -> Path:
    """The file of a checkpoint, found without torch; UserError if there is none.

    `path` is the file itself, the folder of a run or of ``captioner export --to hf``, or hf://organisation/name of the
    Hugging Face hub, optionally with @revision; None and "shipped" are the model that ships with captioner.
    """
    name = os.fspath(find_weights() if path is None or path == SHIPPED_NAME else path)
    if name.startswith("hf://"):
        name = _download(name)
    if os.path.isfile(name):
        return Path(name)
    if not os.path.isdir(name):
        raise UserError(f"there is no checkpoint {name}: train one with `captioner train`, or name another file")
    for file in FOLDER_FILES:
        if Path(name, file).is_file():
            return Path(name, file)
    raise UserError(f"{path} has none of {', '.join(FOLDER_FILES)}: name a checkpoint or the folder of a run")


def _download(address: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{address} needs huggingface_hub: {install_hint('hub')}") from None
    repository, _, revision = address.removeprefix("hf://").partition("@")
    try:
        return snapshot_download(repository, revision=revision or None, allow_patterns=list(HUB_FILES))
    except Exception as error:  # of huggingface_hub and of the network library below it
        raise UserError(f"{address} cannot be fetched ({one_line(error)})") from None


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, on the CPU, of the checkpoint that :func:`resolve_checkpoint` finds; UserError if invalid."""
    file = resolve_checkpoint(path)
    with _refuse_other_files(file):
        if file.suffix == ".safetensors":
            metadata, tensors = load_safetensors(file)
            return _header(json.loads(metadata.get("captioner", "null"))), validate_tensors(tensors)
        content = load_pickle(file)
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            raise ValueError("it has no state_dict")
        tensors = {str(name).removeprefix("model."): value for name, value in content["state_dict"].items()}
        return _header(content.get("captioner")), validate_tensors(tensors)


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """The header alone of such a checkpoint; UserError if it has none. torch is not imported for .safetensors."""
    file = resolve_checkpoint(path)
    with _refuse_other_files(file):
        if file.suffix == ".safetensors":
            return _header(json.loads(load_metadata(file).get("captioner", "null")))
        content = load_pickle(file, mmap=True)
        return _header(content.get("captioner") if isinstance(content, dict) else None)


@contextmanager
def _refuse_other_files(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: of JSON
        reason = one_line(error)
        raise UserError(f"{file} is not a captioner checkpoint ({reason}): name one that captioner wrote") from None


def _header(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"its header is a {type(found).__name__}")
    return found


def file_digest(file: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file."""
    return sha256(file)[:16]


def load_safetensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a .safetensors file, on the CPU; OSError if it cannot be read, ValueError if damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def load_metadata(file: Path) -> dict[str, str]:
    """The metadata alone of a .safetensors file; errors as of :func:`load_safetensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def load_pickle(file: Path, mmap: bool = False, legacy: bool = False) -> Any:
    """Tensors and plain values of a file that torch.save wrote, on the CPU; code in it is not run.

    torch.save never compresses, so that an uncompressed file cannot unfold to more than its size. `mmap` maps the
    tensors into memory instead of reading them; `legacy` allows torch's format before zip archives.

    OSError if the file cannot be read; ValueError if it is damaged, compressed, or has code in it.
    """
    import torch

    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed")
        elif not legacy:
            raise ValueError(NO_WEIGHTS)
        with warnings.catch_warnings():  # about a file that is refused in one line
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # the message of torch advises to run the code
        raise ValueError(NO_WEIGHTS) from None
    except TORCH_ERRORS as error:
        raise ValueError(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}") from None


def validate_tensors(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file; ValueError unless each is a dense array of finite numbers with memory of its own."""
    import torch

    for name, value in tensors.items():
        if (
            not isinstance(value, torch.Tensor)
            or (value.layout, value.device.type, value.is_quantized) != (torch.strided, "cpu", False)
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()  # an expanded tensor
        ):
            raise ValueError(f"{name} is not a dense tensor")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} has infinite or NaN values; an earlier checkpoint may be sound")
    return dict(tensors)


def make_header(config: ModelConfig, vocabulary: Vocabulary, **more: Any) -> dict[str, Any]:
    """The header of a checkpoint as plain values: everything but the tensors."""
    words = list(vocabulary.words[len(SPECIAL) :])
    return {"format": FORMAT, "model": asdict(config), "vocabulary": words, "level": vocabulary.level, **more}


def parse_header(path: str | os.PathLike, header: Mapping[str, Any]) -> tuple[ModelConfig, Vocabulary]:
    """Architecture and vocabulary in the header of a checkpoint; UserError if a value is missing or invalid."""
    try:
        version, options, words, level = (header.get(key) for key in ("format", "model", "vocabulary", "level"))
        level = "word" if level is None else level  # older checkpoints have none
        if not isinstance(version, int) or version != FORMAT:
            raise ValueError(f"format {version!r:.60}, expected {FORMAT}")
        if not isinstance(options, dict) or not isinstance(words, list) or not isinstance(level, str):
            raise ValueError("model, vocabulary and level are not an object, a list and a string")
        for name, value in options.items():
            default = DEFAULTS.get(name)
            kinds = (int, float) if isinstance(default, float) else type(default)
            if default is None or not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
                raise ValueError(f"model.{name} is {str(value)[:60]!r}")
        if not isinstance(header.get("encoder_digest"), str) and header.get("kind") != "language_model":
            raise ValueError(f"encoder_digest is {str(header.get('encoder_digest'))[:60]!r}")
        if not isinstance(header.get("decoder", ""), str):
            raise ValueError(f"decoder is {str(header['decoder'])[:60]!r}")
        longest = header.get("max_length", MAX_LENGTH)  # older checkpoints have none
        if not isinstance(longest, int) or not 1 <= longest <= MOST_WORDS:
            raise ValueError(f"max_length is {str(longest)[:60]!r}")
        for word in words:
            if not is_word(word, level):
                raise ValueError(f"{str(word)[:60]!r} is not a {level}")
        return ModelConfig(**options), Vocabulary(words, level)
    except (UserError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint that this captioner can open ({error})") from None


def inherited_options(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The options, by group, of a training that begins with this checkpoint, where they are not given.

    They are those of its model (of a language model those of its decoder), and the level of its vocabulary.
    """
    header = read_header(path)
    config, vocabulary = parse_header(path, header)
    names = LANGUAGE_OPTIONS if header.get("kind") == "language_model" else DEFAULTS
    return {"data": {"level": vocabulary.level}, "model": {name: getattr(config, name) for name in names}}


def save_slim(
    path: str | os.PathLike, header: Mapping[str, Any], weights: Mapping[str, Tensor], half: bool = True
) -> None:
    """Write a .safetensors file, whole or not at all; with `half` in fp16, except tensors that overflow in it."""
    from safetensors.torch import save

    tensors = {}
    for name, value in weights.items():
        short = value.half() if half and value.is_floating_point() else value
        tensors[name] = (short if short.isfinite().all() else value).detach().cpu().contiguous()
    with atomic_write(path) as part:
        part.write_bytes(save(tensors, metadata={"captioner": json.dumps(header)}))
