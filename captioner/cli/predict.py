"""Caption images: files, folders, glob patterns, addresses (s3://…), parquet files (--column), - for paths on standard
input, or @list.txt, a file that lists any of these, one per line.

A model of clips and albums (--model.frames) captions videos and animated images; a folder is an album. With --output,
the same command continues an interrupted run, with any --engine.

Example: captioner predict dog.jpg holiday/ --beam 5 --n-best 3
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TextIO

from captioner.cli.options import add_model_arguments, config_of, load_model, report_heading, say_written
from captioner.config import SearchConfig
from captioner.errors import UserError, counted, decimals, printable
from captioner.files import atomic_write, check_writable

MAIN = "checkpoint device beam n_best max_length format output engine report"

CHECKPOINTS = "checkpoint"
READS = "images annotations"
WRITES = "output report"
NEEDS = {"part_size": "--output"}


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images to caption, see above")
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        type=Literal["text", "jsonl", "csv", "coco"],
        default="text",
        help="text: path, tab, caption (--n_best: and score), unsure if it is; coco: with the ids of --annotations",
    )
    about = "COCO JSON with the ids and names of the images, such as image_info_test2014.json, for --format coco"
    parser.add_argument("--annotations", type=str, help=about)
    parser.add_argument(
        "--output",
        type=str,
        help="write to this file instead of standard output, whole or not at all; NAME/ is a folder that keeps the "
        "JSON lines of the parts, with those of unreadable images",
    )
    parser.add_argument("--column", type=str, default="image", help="of parquet files: images, or paths of images")
    parser.add_argument(
        "--engine",
        type=Literal["local", "ddp", "ray"],
        default="local",
        help="local: this process; ddp: several Lightning processes; ray: actors of Ray Data, also on a cluster",
    )
    parser.add_argument("--devices", type=int, default=1, help="processes of --engine ddp or ray, each on a GPU if any")
    parser.add_argument("--part_size", type=int, default=256, help="images in a part, the unit of resumption")
    about = "also write an HTML page with the images, the probability of each word and its attention map"
    parser.add_argument("--report", type=str, help=about)


def run(options: Any) -> int:
    """Caption; see the module's docstring. 1 if an image could not be read."""
    from captioner.data.inputs import find_inputs

    search = config_of(SearchConfig, options)
    _check_combinations(options)
    named = [path for name in options.images for path in (sys.stdin.read().splitlines() if name == "-" else [name])]
    model, workers = load_model(options)
    items = find_inputs((path for path in named if path), model.frames > 0, options.column)
    in_one_go = options.output is None or options.report
    ids = _image_ids(options.annotations, items) if options.format == "coco" else None
    failed = (_caption_stream if in_one_go else _caption_parts)(options, search, model, workers, items, ids)
    if failed:
        print(f"captioner predict: {failed} of {counted(len(items), 'image')} could not be read", file=sys.stderr)
    say_written(len(items) - failed, options.output, options.report)
    return 1 if failed else 0


def _check_combinations(options: Any) -> None:
    for name in ("devices", "part_size"):
        if options[name] < 1:
            raise UserError(f"--{name} is {options[name]}: expected 1 or more")
    if (options.format == "coco") != (options.annotations is not None):
        raise UserError("--format coco and --annotations, which has the image ids, belong together: give both or none")
    if options.engine == "local" and options.devices > 1:
        raise UserError(f"--devices is {options.devices}: expected 1 with --engine local; ddp and ray use several")
    if options.engine != "local" and options.output is None:
        raise UserError(f"--engine {options.engine} writes its parts to a folder: name one, or a file, by --output")
    if options.report and (options.engine != "local" or _is_folder(options.output)):
        raise UserError("--report is written by one process in one go: use --engine local, and no folder as --output")


def check_engine_device(options: Any, device: str) -> None:
    """Raise UserError unless the engine runs on devices of this kind, and has as many as its processes need."""
    import torch

    from captioner.devices import check_processes

    if options.engine != "local" and device not in ("cpu", "cuda"):
        raise UserError(f"--device is {device}: expected cpu or cuda with --engine {options.engine}")
    if options.engine == "ddp" and device == "cuda" and options.devices > torch.cuda.device_count():
        raise UserError(f"--devices is {options.devices}: expected 1 to {torch.cuda.device_count()}, the GPUs here")
    if device == "cpu" and not os.environ.get("RAY_ADDRESS"):  # of a cluster
        check_processes(options.devices, "--devices")


def _is_folder(output: str | None) -> bool:
    return output is not None and (output.endswith(("/", os.sep)) or os.path.isdir(output))


def _image_ids(annotations: str, items: Sequence[Any]) -> dict[str, Any]:
    """The id of each image in COCO's JSON, by the image as it is named in a record; UserError if one has none."""
    from captioner.data.formats import read_coco_images
    from captioner.metrics.result_files import match_results

    names = read_coco_images(Path(annotations))
    captions = {str(item): str(item) for item in items}
    found, missing, extra = match_results(names, captions, names, annotations)
    if extra:
        raise UserError(
            f"{annotations} lacks {len(extra)} of {counted(len(items), 'image')}, such as {extra[0]!r}: leave them out"
        )
    if missing:
        print(f"{annotations}: {len(missing)} of {counted(len(names), 'image')} without a caption", file=sys.stderr)
    return {item: image_id for image_id, item in found.items()}


def _caption_stream(
    options: Any, search: SearchConfig, model: Any, workers: int, items: list[Any], ids: dict[str, Any] | None
) -> int:
    """Caption directly to the output and the page of --report; return how many images could not be read."""
    from captioner.data.dataset import clips_per_batch
    from captioner.inference.jobs import caption_record
    from captioner.progress import Bar
    from captioner.reports.gallery import GalleryPage

    attention = options.report is not None and model.has_attention
    results = model.caption_files(items, search, options.batch_size, workers, attention)
    heading = report_heading(options, len(items))
    about = (heading, items, attention, options.command_line)
    page = GalleryPage(Path(options.report), *about) if options.report else nullcontext()

    def records(gallery: GalleryPage | None) -> Iterator[dict[str, Any]]:
        for item, result in bar:
            if gallery is not None:
                gallery.add(item, result)
            yield caption_record(item, result, search.n_best)

    numbers = _numbers(search, model)
    batch, files = clips_per_batch(options.batch_size, model.frames), bool(options.output or options.report)
    off = None if files or len(items) > batch else True  # the captions of few images are shown as soon as a bar
    both = zip(items, results, strict=True)
    bar = Bar(both, "captions", len(items), batch=batch, leave=files, disable=off)
    with bar, _open_output(options.output) as out, page as gallery:
        return _print_records(records(gallery), options.format, out, ids, numbers)


def _caption_parts(
    options: Any, search: SearchConfig, model: Any, workers: int, items: list[Any], ids: dict[str, Any] | None
) -> int:
    """Caption to a folder of parts that survives an interruption; return how many images could not be read.

    The folder is --output itself, or lies beside that file until the file is complete.
    """
    from captioner.inference.jobs import CaptionJob, caption_parts

    check_engine_device(options, model.device.type)
    numbers = _numbers(search, model)
    job = CaptionJob(options.checkpoint, search, options.batch_size, workers, model.device.type, options.devices)
    if options.engine != "local":
        model = model.cpu()  # the other processes load their own
    if _is_folder(options.output):
        parts = caption_parts(options.engine, job, Path(options.output), items, model, options.part_size)
        return _print_records(parts.records(), options.format, None, ids, numbers)
    check_writable(Path(options.output))
    folder = Path(options.output + ".parts")
    parts = caption_parts(options.engine, job, folder, items, model, options.part_size)
    with _open_output(options.output) as out:
        failed = _print_records(parts.records(), options.format, out, ids, numbers)
    parts.remove()
    return failed


def _numbers(search: SearchConfig, model: Any) -> list[str]:
    """The columns of a table after image and caption."""
    return [*["score"] * (search.n_best > 1), *["confidence"] * model.has_confidence(search)]


def _print_records(
    records: Iterable[dict[str, Any]], form: str, out: TextIO | None, ids: dict[str, Any] | None, numbers: list[str]
) -> int:
    """Print captions to `out`, if any, and errors to standard error; return the number of errors."""
    failed = 0
    table = csv.writer(out, lineterminator="\n") if out is not None and form == "csv" else None
    if table is not None:
        table.writerow(["image", "caption", *numbers])
    results = []
    for record in records:
        if "error" in record:
            failed += 1
            print(f"captioner predict: {printable(record['error'])}", file=sys.stderr)
        elif out is not None:
            if ids is not None:
                results.append({"image_id": ids[record["image"]], "caption": record["caption"]})
            elif table is not None:
                for caption in record.get("n_best", [record]):
                    cells = (decimals(caption[name], ".3f") if name in caption else "" for name in numbers)
                    table.writerow([record["image"], caption["caption"], *cells])
            elif form == "jsonl":
                print(json.dumps(record, ensure_ascii=False), file=out)
            else:
                for caption in record.get("n_best", [record]):
                    score = f"\t{decimals(caption['score'], '.3f')}" if "n_best" in record else ""
                    print(f"{record['image']}\t{caption['caption']}{score}{_unsure(caption)}", file=out)
            out.flush()
    if ids is not None and out is not None:
        json.dump(results, out, ensure_ascii=False)
    return failed


def _unsure(caption: dict[str, Any]) -> str:
    """The last column of a caption that is likelier wrong than right."""
    from captioner.models.confidence import UNSURE

    confidence = caption.get("confidence", 1)
    return f"\tunsure ({confidence:.0%})" if confidence < UNSURE else ""


@contextmanager
def _open_output(output: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that is written whole or not at all."""
    if output is None:
        yield sys.stdout
        return
    with atomic_write(output) as part, open(part, "w", encoding="utf-8", errors="surrogateescape") as file:
        yield file
