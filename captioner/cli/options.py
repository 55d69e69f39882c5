"""Options that several commands share: their declarations, and the objects made from their values."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from captioner.cli.parser import ConfigFile
from captioner.config import IMAGE_BATCH_SIZE, SearchConfig
from captioner.data.addresses import ADDRESS
from captioner.errors import UserError, counted

Config = TypeVar("Config")


def config_of(kind: type[Config], options: Any) -> Config:
    """The dataclass whose fields were declared among the options with ``parser.add_class_arguments(kind)``."""
    return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})  # type: ignore[arg-type]


def add_run_arguments(parser: Any, output: str) -> None:
    """The options of a command that trains: ``--config``, ``--output`` with its default, and ``--resume``."""
    about = "YAML file or name (flickr8k); typed options win"
    parser.add_argument("--config", action=ConfigFile, help=about)
    parser.add_argument("--output", type=str, default=output, help="folder of the run")
    parser.add_argument("--resume", type=bool, default=False, help="continue the run in --output from its last.ckpt")


def check_resumed(options: Any, data: str) -> None:
    """UserError if ``--resume`` has no run in ``--output``, nor `data`, the option with which one begins."""
    out = Path(options.output)
    is_run = (out / "config.yaml").is_file() or any(out.glob("*.ckpt"))
    if options.resume and not is_run and not attrgetter(data)(options):
        raise UserError(f"--output {out} has no run to resume: name the folder of one, or begin one with --{data}")


def add_checkpoint_arguments(parser: Any) -> None:
    """``--checkpoint``, which may be given several times for an ensemble, and ``--device``."""
    about = "file of a model or folder of a run (default: the shipped model); repeat it for an ensemble"
    parser.add_argument("--checkpoint", action="append", type=str, help=about)
    add_device_argument(parser)


def add_device_argument(parser: Any) -> None:
    """``--device``, for :func:`resolve_device`."""
    parser.add_argument("--device", type=str, default="auto", help="auto (cuda or cpu), cpu, cuda, cuda:1 or mps")


def add_model_arguments(parser: Any) -> None:
    """The options of a command that captions files: which model, how many images at a time, and how to search."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=IMAGE_BATCH_SIZE, help="images decoded together")
    parser.add_argument("--workers", type=int, default=-1, help="processes that decode images (-1 = choose)")
    parser.add_class_arguments(SearchConfig)


def add_split_arguments(parser: Any, split: str | None = "val", prefix: str = "") -> None:
    """``--images``, ``--split``, ``--list`` and ``--columns`` of captioned images; with a prefix ``--val_images`` …"""
    parser.add_argument(f"--{prefix}images", type=str, help="folder that the file names are relative to, if needed")
    parser.add_argument(f"--{prefix}split", type=str, default=split, help="which split, if there are several")
    parser.add_argument(f"--{prefix}list", type=str, help="only the images named in this file, one per line")
    if not prefix:
        about = "IMAGE,CAPTION: names of a table's columns, if they are not the usual ones"
        parser.add_argument("--columns", type=str, help=about)
        parser.add_argument("--encoding", type=str, help="of text that is not UTF-8, such as cp1252")


def add_skip_argument(parser: Any) -> None:
    """``--skip_bad_images``."""
    about = "count and skip missing or unreadable images, instead of stopping"
    parser.add_argument("--skip_bad_images", type=bool, default=False, help=about)


def check_names(parser: Any, options: Any) -> None:
    """Check what can be before torch is imported, which takes seconds: names of files, and options without effect.

    The module of a command lists the options that are checkpoints in ``CHECKPOINTS``, those that are other files,
    folders, patterns or addresses to read in ``READS`` (of several images one has to exist, of several sets all), and
    those that it writes in ``WRITES``. What the files hold is checked where they are read. ``NEEDS`` has the options
    that have no effect without another one, ``{"card title": "--to hf"}``.
    """
    from captioner.files import check_creatable, check_replaceable
    from captioner.models.checkpoint import resolve_checkpoint

    def named(kind: str) -> Iterator[tuple[str, list[str]]]:
        for option in getattr(parser.command, kind, "").split():
            value = attrgetter(option)(options)
            if value is not None:
                yield option, list(map(str, value)) if isinstance(value, list) else [str(value)]

    for names, needed in getattr(parser.command, "NEEDS", {}).items():
        name, _, value = needed.removeprefix("--").partition(" ")
        found = attrgetter(name)(options)
        typed = next((option for option in names.split() if option in parser.typed), None)
        if typed and not (found == value if value else found):
            raise UserError(f"--{typed} has no effect without {needed}: add that, or leave it out")
    inputs: list[str] = []
    for _, names in named("CHECKPOINTS"):
        inputs += [str(resolve_checkpoint(name)) for name in names if not name.startswith("hf://")]
    for option, names in named("READS"):
        missing = [name for name in names if name != "None" and not _may_exist(name)]
        if missing and (len(missing) == len(names) or option.startswith("data.")):
            raise UserError(f"{parser.place(option)}{missing[0]}: no such file; check the path")
        inputs += [name for name in names if os.path.isfile(name)]
    for option, names in named("WRITES"):
        check_creatable(names[0], f"--{option} {names[0]}")
        check_replaceable(names[0], f"--{option} {names[0]}", inputs)
    written = [os.path.realpath(names[0]) for _, names in named("WRITES")]
    if twice := next((path for path in written if written.count(path) > 1), None):
        raise UserError(f"{twice} is named as two outputs: name another file for one")


def _may_exist(name: str) -> bool:
    """Whether a file or folder is there, also the list of @list and the folder of a pattern; True for addresses."""
    if name == "-" or ADDRESS.match(name) or os.path.lexists(name):
        return True
    if name.startswith("@"):
        return os.path.lexists(name[1:])
    fixed, *pattern = re.split(r"[*?[{]", name, maxsplit=1)
    return bool(pattern) and os.path.isdir(os.path.dirname(fixed) or ".")


def read_split(options: Any, path: str, albums: bool = False) -> tuple[list[Any], list[str]]:
    """The examples of `path` that the options select, and a line for each that --skip_bad_images leaves out."""
    from captioner.data.annotations import read_examples

    return read_examples(
        path,
        options.images,
        options.split,
        columns=options.columns,
        listed=options.list,
        skip_bad=options.skip_bad_images,
        option="--skip_bad_images",
        albums=albums,
    )


def resolve_device(name: str) -> str:
    """The device of ``--device``; for auto, cuda or cpu. UserError if it cannot be used."""
    from captioner import devices

    return devices.resolve_device(name, "--device")


def load_model(options: Any) -> tuple[Any, int]:
    """The model of ``--checkpoint`` on ``--device``, and the number of processes that read images for it."""
    for name, least, most in (("batch_size", 1, 100_000), ("workers", -1, 1000)):
        if not least <= options[name] <= most:
            raise UserError(f"--{name} is {options[name]}: expected {least} or more, up to {most}")
    from captioner.devices import choose_workers
    from captioner.models.captioner import load

    device = resolve_device(options.device)
    return load(options.checkpoint, device), choose_workers(options.workers, device)


def model_name(checkpoints: list[str] | None) -> str:
    """The files of ``--checkpoint``, joined by +: the name of the model in reports and responses."""
    return " + ".join(checkpoints or ["the shipped model"])


def say_written(images: int, *files: str | None) -> None:
    """The last line of a command on a terminal: which of these files it wrote, and the captions of how many images."""
    if sys.stderr.isatty() and (names := [name for name in files if name]):
        print(f"{' and '.join(names)}: captions of {counted(images, 'image')}", file=sys.stderr)


def report_heading(options: Any, images: int) -> str:
    """The line at the top of the page of ``--report``: number of images, model and search."""
    search = f"sampled, seed {options.seed}" if options.sample else f"beam {options.beam}"
    from captioner.reports.page import short_paths

    model = model_name(short_paths(options.checkpoint) if options.checkpoint else None)
    return f"{counted(images, 'image')} · {model} · {search}"
