"""Caption pictures: files, folders, glob patterns, or - to read paths from standard input.

With a model of clips and albums (--model.frames): videos and animated pictures; a folder is an album.

Example: captioner predict dog.jpg holiday/ --beam 5 --n-best 3
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from captioner.commands import config_of
from captioner.config import PICTURES, SearchConfig
from captioner.errors import UserError


def add_model_arguments(parser: Any) -> None:
    """The options that predict and evaluate share."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=str,
        help="captioner.safetensors, best.ckpt …; without it, the shipped one; several times: an ensemble",
    )
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--batch_size", type=int, default=PICTURES, help="pictures decoded together")
    parser.add_argument("--workers", type=int, default=-1, help="processes that read pictures (-1 = choose)")
    parser.add_class_arguments(SearchConfig)


def load_model(options: Any) -> tuple[Any, int]:
    """The model of ``--checkpoint`` on ``--device``, and how many processes should read pictures for it."""
    import torch

    from captioner.dataset import best_device, choose_workers
    from captioner.model import load

    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: expected 1 or more")
    device = best_device() if options.device == "auto" else options.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None
    return load(options.checkpoint, device), choose_workers(options.workers, device)


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, a glob pattern, or -")
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        choices=("text", "jsonl"),
        default="text",
        help="text: path, tab, caption (and with --n_best its log-probability); jsonl: an object a picture",
    )
    parser.add_argument("--output", type=str, help="write here instead of to standard output, renamed when whole")
    parser.add_argument(
        "--report",
        type=str,
        help="write an HTML page, too, with the pictures, how sure each word is and where the model looked for it",
    )


def run(options: Any) -> int:
    """Caption; see the module's docstring. 1 if some picture could not be read."""
    from captioner.gallery import Gallery
    from captioner.images import find_images

    search = config_of(SearchConfig, options)
    named = [path for name in options.images for path in (sys.stdin.read().splitlines() if name == "-" else [name])]
    model, workers = load_model(options)
    paths = find_images((path for path in named if path), clips=model.frames > 0)
    failed = 0
    attention = options.report is not None and model.attends
    every = model.caption_files(paths, search, options.batch_size, workers, attention)
    page = Gallery(Path(options.report), _about(options, len(paths)), attention) if options.report else nullcontext()
    with _writer(options.output) as out, page as report:
        for path, found in zip(paths, every, strict=True):
            if report is not None:
                report.add(path, found)
            if isinstance(found, UserError):
                print(f"captioner predict: {found}", file=sys.stderr)
                failed += 1
            elif options.format == "text":
                for caption in found:
                    log_prob = f"\t{caption.log_prob:.3f}" if search.n_best > 1 else ""
                    print(f"{path}\t{caption.text}{log_prob}", file=out)
            else:
                record = {"image": str(path), **found[0].as_dict()}
                if search.n_best > 1:
                    record["n_best"] = [caption.as_dict() for caption in found]
                print(json.dumps(record, ensure_ascii=False), file=out)
            out.flush()
    if failed:
        print(f"captioner predict: {failed} of {len(paths)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _about(options: Any, pictures: int) -> str:
    """What the page of ``--report`` says of itself."""
    model = " + ".join(options.checkpoint or ["the shipped model"])
    search = f"sampled, seed {options.seed}" if options.sample else f"beam {options.beam}"
    return f"{pictures} {'picture' if pictures == 1 else 'pictures'} · {model} · {search}"


@contextmanager
def _writer(output: str | None) -> Iterator[TextIO]:
    """Standard output, or a file written line by line as OUTPUT.part and renamed when whole."""
    if output is None:
        yield sys.stdout
        return
    path = Path(output)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error}): choose another file") from None
