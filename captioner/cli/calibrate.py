"""Fit the confidence of a model's captions on captioned images that it was not trained on, and store it in its file.

Example: captioner calibrate --checkpoint runs/mine --annotations captions_val.json --images images/val

Repeat --annotations, each with its --images, for several sets. Afterwards predict, evaluate, demo and serve say how
likely the best caption of an image is right, if they search with the same options. See docs/confidence.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from captioner.cli.options import add_device_argument, add_skip_argument, config_of, load_model
from captioner.config import IMAGE_BATCH_SIZE, SearchConfig
from captioner.errors import UserError, counted
from captioner.files import check_writable

MAIN = "checkpoint annotations images list output cider beam device skip_bad_images"

CHECKPOINTS = "checkpoint"
READS = "annotations images list"
WRITES = "output plot"
LEAST = 100  # images: the standard error of the share of right captions is 0.05


def configure(parser: Any) -> None:
    """Declare the options."""
    from captioner.models.confidence import RIGHT

    about = "file of a model (.safetensors) or folder of a finished run (default: the shipped model)"
    parser.add_argument("--checkpoint", type=str, help=about)
    about = "references, in any format of docs/data.md; repeat it for another set"
    parser.add_argument("--annotations", action="append", type=str, required=True, help=about)
    parser.add_argument("--images", action="append", type=str, help="folder of the images of each set, if needed")
    parser.add_argument("--split", type=str, default="val", help="which split, if there are several")
    parser.add_argument("--list", action="append", type=str, help="of each set only the images named in this file")
    parser.add_argument("--columns", type=str, help="IMAGE,CAPTION: names of a table's columns, if not the usual ones")
    parser.add_argument("--encoding", type=str, help="of text that is not UTF-8, such as cp1252")
    add_skip_argument(parser)
    about = "write the calibrated model to this .safetensors file (default: back to --checkpoint)"
    parser.add_argument("--output", type=str, help=about)
    parser.add_argument("--plot", type=str, help="also draw the reliability curve to this PNG, SVG or PDF")
    about = "a caption is right if its CIDEr is at least this"
    parser.add_argument("--cider", type=float, default=RIGHT, help=about)
    add_device_argument(parser)
    parser.add_argument("--batch_size", type=int, default=IMAGE_BATCH_SIZE, help="images decoded together")
    parser.add_argument("--workers", type=int, default=-1, help="processes that decode images (-1 = choose)")
    parser.add_class_arguments(SearchConfig, skip={"n_best"})


def run(options: Any) -> None:
    """Caption, fit, test and write; see the module's docstring."""
    from captioner.models.checkpoint import read_checkpoint, save_slim
    from captioner.models.confidence import fit

    target, sets = _target(options), _sets(options)
    model, workers = load_model(options)
    header, tensors = read_checkpoint(options.checkpoint)
    search = config_of(SearchConfig, options).for_model(model.max_length)
    perplexities: list[float] = []
    right: list[bool] = []
    for one in sets:
        captions, ciders = _caption(options, model, workers, search, *one)
        perplexities += [caption.perplexity for caption in captions]
        right += [cider >= options.cider for cider in ciders]
    if len(right) < LEAST:
        raise UserError(f"{counted(len(right), 'image')} to calibrate on: too few, name {LEAST} or more, better 500")
    if len(set(right)) == 1:
        share = "every" if right[0] else "no"
        raise UserError(f"{share} caption has a CIDEr of {options.cider:g} or more: choose another --cider")
    calibration = fit(perplexities, right, options.cider, search)
    _show(options, calibration, perplexities, right)
    save_slim(target, {**header, "calibration": asdict(calibration)}, tensors, half=False)
    print(f"{target}: calibrated")


def _target(options: Any) -> Path:
    """The file to write."""
    from captioner.models.checkpoint import resolve_checkpoint

    name, output = options.checkpoint, options.output
    if output is None and (name is None or name.startswith("hf://")):
        raise UserError(f"{name or 'the shipped model'} is not changed in place: name a new file by --output")
    file = resolve_checkpoint(name)
    target = file if output is None else Path(output)
    if file.suffix != ".safetensors":
        raise UserError(f"{file} is of a run in progress: calibrate its captioner.safetensors when it is finished")
    if target.suffix != ".safetensors":
        raise UserError(f"--output is {target}: expected a .safetensors file")
    check_writable(target)
    if options.plot is not None:
        from captioner.training.curves import check_figure

        check_figure("--plot", Path(options.plot))
    return target


def _sets(options: Any) -> Iterator[tuple[str, str | None, str | None]]:
    """The captions, images and list of each set; UserError unless images and lists are none, one or one a set."""
    columns = [options.annotations]
    for name in ("images", "list"):
        values = options[name] or [None]
        if len(values) not in (1, len(options.annotations)):
            raise UserError(f"{len(values)} --{name} for {len(options.annotations)} --annotations: name one for each")
        columns.append(values if len(values) > 1 else values * len(options.annotations))
    return zip(*columns, strict=True)


def _caption(
    options: Any, model: Any, workers: int, search: SearchConfig, path: str, images: str | None, listed: str | None
) -> tuple[list[Any], list[float]]:
    """The best captions of a set, and the CIDEr (times 100) of each."""
    from captioner import metrics
    from captioner.data.annotations import read_examples
    from captioner.data.dataset import clips_per_batch
    from captioner.data.samplers import unreadable_image
    from captioner.metrics.tokenizers import TOKENIZERS, tokenize_references, tokenizer_of
    from captioner.progress import Bar

    skip: dict[str, Any] = {"skip_bad": options.skip_bad_images, "option": "--skip_bad_images"}
    examples, skipped = read_examples(
        path, images, options.split, columns=options.columns, listed=listed, albums=model.frames > 0, **skip
    )
    found, references = [], []
    results = model.caption_files([example.path for example in examples], search, options.batch_size, workers)
    batch = clips_per_batch(options.batch_size, model.frames)
    for example, result in Bar(zip(examples, results, strict=True), "captions", len(examples), batch=batch):
        if not isinstance(result, UserError):
            found.append(result[0])
            references.append(example.captions)
        elif options.skip_bad_images:
            skipped.append(str(result))
        else:
            raise unreadable_image(str(result), "--skip_bad_images")
    if skipped:
        print(f"{path}: {len(skipped)} skipped, e.g. {skipped[0]}", file=sys.stderr)
    if not found:
        raise UserError(f"{path} has no readable image")
    tokenizer = tokenizer_of(model.vocabulary.level)
    words = TOKENIZERS[tokenizer](caption.text for caption in found)
    scores = metrics.cider_d(tokenize_references(references, tokenizer), words)
    return found, (100 * scores).tolist()


def _show(options: Any, calibration: Any, perplexities: Sequence[float], right: Sequence[bool]) -> None:
    """Print the confidences by perplexity, and how good they are on captions that they were not fitted on."""
    from captioner.metrics.calibration import show_error, summary
    from captioner.models.confidence import UNSURE, cross_validated

    found = summary(cross_validated(perplexities, right, calibration), right)
    unsure = sum(calibration.confidence(each) < UNSURE for each in perplexities)
    print(
        f"{counted(len(right), 'caption')}, {sum(right)} right (CIDEr {calibration.cider:g} or more), {unsure} unsure"
    )
    for share in (5, 25, 50, 75, 95):
        perplexity = float(np.percentile(perplexities, share))
        print(f"perplexity {perplexity:5.2f}: confidence {calibration.confidence(perplexity):4.0%}")
    print(f"each fifth by a fit of the others: {show_error(found)}")
    if options.plot is not None:
        from captioner.training.curves import plot_reliability

        plot_reliability(found, Path(options.plot))
        print(options.plot)
