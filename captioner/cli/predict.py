"""Caption images: files, folders, glob patterns, or - to read paths from standard input.

With a model of clips and albums (--model.frames): videos and animated images; a folder is an album.

Also addresses (s3://…), parquet files (--column), and @list.txt, a file with any of these a line. With --output an
interrupted run leaves the parts it has written, and the same command goes on from there, with any --engine.

Example: captioner predict dog.jpg holiday/ --beam 5 --n-best 3
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from captioner.cli.options import add_model_arguments, config_of, load_model, report_heading
from captioner.config import SearchConfig
from captioner.errors import UserError, printable
from captioner.files import atomic_write, check_writable

MAIN = "checkpoint device beam n_best max_length format output engine report"


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, a glob pattern, or - …")
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        choices=("text", "jsonl"),
        default="text",
        help="text: path, tab, caption (and with --n_best its log-probability); jsonl: an object an image",
    )
    parser.add_argument(
        "--output",
        type=str,
        help="write here instead of to standard output, renamed when whole; a folder (NAME/) keeps the JSON lines of "
        "the parts, with those of unreadable images",
    )
    parser.add_argument("--column", type=str, default="image", help="of parquet files: images, or paths of images")
    parser.add_argument(
        "--engine",
        choices=("local", "ddp", "ray"),
        default="local",
        help="local: this process; ddp: several of Lightning; ray: actors of Ray Data, also on a cluster",
    )
    parser.add_argument("--devices", type=int, default=1, help="processes of --engine ddp or ray, each on a GPU if any")
    parser.add_argument("--part_size", type=int, default=256, help="images that an interruption costs, at most")
    parser.add_argument(
        "--report",
        type=str,
        help="write an HTML page, too, with the images, how sure each word is and where the model looked for it",
    )


def run(options: Any) -> int:
    """Caption; see the module's docstring. 1 if some image could not be read."""
    from captioner.data.inputs import find_inputs

    search = config_of(SearchConfig, options)
    _check(options)
    named = [path for name in options.images for path in (sys.stdin.read().splitlines() if name == "-" else [name])]
    model, workers = load_model(options)
    items = find_inputs((path for path in named if path), model.frames > 0, options.column)
    if options.output is None or options.report:
        failed = _stream(options, search, model, workers, items)
    else:
        failed = _in_parts(options, search, model, workers, items)
    if failed:
        print(f"captioner predict: {failed} of {len(items)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _check(options: Any) -> None:
    """Refuse what does not go together."""
    if options.devices < 1:
        raise UserError(f"--devices is {options.devices}: expected 1 or more")
    if options.part_size < 1:
        raise UserError(f"--part_size is {options.part_size}: expected 1 or more")
    if options.engine == "local" and options.devices > 1:
        raise UserError(f"--devices is {options.devices}: expected 1 with --engine local; ddp and ray use several")
    if options.engine != "local" and options.output is None:
        raise UserError(f"--engine {options.engine} writes its parts to a folder: name one, or a file, by --output")
    if options.report and (options.engine != "local" or _is_folder(options.output)):
        raise UserError("--report is written by one process in one go: use --engine local, and no folder as --output")


def _is_folder(output: str | None) -> bool:
    return output is not None and (output.endswith(("/", os.sep)) or os.path.isdir(output))


def _stream(options: Any, search: SearchConfig, model: Any, workers: int, items: list[Any]) -> int:
    """Caption straight to the output, and to the page of --report; how many images could not be read."""
    from captioner.inference.jobs import record
    from captioner.reports.gallery import Gallery

    attention = options.report is not None and model.attends
    every = model.caption_files(items, search, options.batch_size, workers, attention)
    page = (
        Gallery(Path(options.report), report_heading(options, len(items)), attention)
        if options.report
        else nullcontext()
    )
    failed = 0
    with _writer(options.output) as out, page as report:
        for item, found in zip(items, every, strict=True):
            if report is not None:
                report.add(item, found)
            failed += _put(record(item, found, search.n_best), options.format, out)
            out.flush()
    return failed


def _in_parts(options: Any, search: SearchConfig, model: Any, workers: int, items: list[Any]) -> int:
    """Caption to a folder of parts that outlasts an interruption; how many images could not be read.

    The folder is --output, or lies beside it until the file is whole.
    """
    from captioner.inference.jobs import Job, caption_parts

    several = options.engine != "local"
    job = Job(options.checkpoint, search, options.batch_size, workers, model.device.type, options.devices)
    if several:
        model = model.cpu()
    keep = _is_folder(options.output)
    if not keep:
        check_writable(Path(options.output))
    folder = Path(options.output if keep else options.output + ".parts")
    parts = caption_parts(options.engine, job, folder, items, model, options.part_size)
    with nullcontext() if keep else _writer(options.output) as out:
        failed = sum(_put(record, options.format, out) for record in parts.records())
    if not keep:
        shutil.rmtree(folder)
    return failed


def _put(record: dict[str, Any], form: str, out: TextIO | None) -> bool:
    """Write an image's captions to `out`, if any, or to standard error why it has none; whether it has none."""
    if "error" in record:
        print(f"captioner predict: {printable(record['error'])}", file=sys.stderr)
        return True
    if out is None:
        pass
    elif form == "jsonl":
        print(json.dumps(record, ensure_ascii=False), file=out)
    elif "n_best" in record:
        for caption in record["n_best"]:
            print(f"{record['image']}\t{caption['caption']}\t{caption['log_prob']:.3f}", file=out)
    else:
        print(f"{record['image']}\t{record['caption']}", file=out)
    return False


@contextmanager
def _writer(output: str | None) -> Iterator[TextIO]:
    """Standard output, or a file, line by line."""
    if output is None:
        yield sys.stdout
        return
    with atomic_write(output) as part, open(part, "w", encoding="utf-8", errors="surrogateescape") as file:
        yield file
