"""Caption a validation set, each image once, and score the captions.

Example: captioner evaluate --annotations captions_val.json --images val --output results.json --report report.html
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from captioner.cli.options import (
    add_model_arguments,
    add_skip_argument,
    add_split_arguments,
    config_of,
    load_model,
    model_name,
    read_split,
    report_heading,
    say_written,
)
from captioner.config import SearchConfig
from captioner.errors import UserError, counted
from captioner.files import check_writable, write_json

MAIN = "checkpoint device annotations images split beam output report compare compare_checkpoint json skip_bad_images"

CHECKPOINTS = "checkpoint compare_checkpoint"
READS = "annotations images list compare training document_frequency"
WRITES = "output report json per_image"


def configure(parser: Any) -> None:
    """Declare the options."""
    from captioner.metrics.scoring import ScoreOptions

    add_model_arguments(parser)
    parser.add_argument("--annotations", type=str, required=True, help="references, in any format of docs/data.md")
    add_split_arguments(parser)
    add_skip_argument(parser)
    parser.add_argument("--output", type=str, help="write the captions to this COCO results JSON")
    parser.add_argument("--compare_checkpoint", type=str, help="also caption with this model, and compare the two")
    parser.add_argument("--report", type=str, help="also write an HTML page: scores, and every image with its captions")
    parser.add_class_arguments(ScoreOptions)


def run(options: Any) -> None:
    """Caption and score; see the module's docstring."""
    from captioner.metrics.scoring import ScoreOptions, prepare_scoring, score_images, show_scores

    wanted = config_of(ScoreOptions, options)
    if options.n_best > 1 and not options.report and not options.sample:
        raise UserError("--n_best has no effect without --report: the best caption is scored")
    if wanted.compare and options.compare_checkpoint:
        raise UserError("--compare and --compare_checkpoint both name the system to compare with: leave one out")
    from captioner.metrics.tokenizers import tokenizer_of
    from captioner.models.captioner import load

    model, workers = load_model(options)
    if wanted.tokenizer == "auto":
        wanted = replace(wanted, tokenizer=tokenizer_of(model.vocabulary.level))
    models = [model, *([load(options.compare_checkpoint, model.device)] if options.compare_checkpoint else [])]
    examples, skipped = read_split(options, options.annotations, model.frames > 0)
    references = {example.image_id: list(example.captions) for example in examples}
    names = {example.image_id: example.name.replace(os.sep, "/") for example in examples}
    # A results file to compare with may lack the images skipped here
    comparison = prepare_scoring(replace(wanted, partial=wanted.partial or options.skip_bad_images), references, names)
    if options.output is not None:
        check_writable(Path(options.output))

    captions: dict[Any, str] = {}
    confidences: dict[Any, float | None] = {}
    seconds: dict[Any, str] = {}  # of --compare_checkpoint
    paths: dict[Any, Any] = {}
    with _open_report(options, models, len(examples)) as page:
        for example, (first, *second) in _caption(options, models, workers, examples, skipped):
            image = example.image_id
            paths[image], captions[image], confidences[image] = example.path, first[0].text, first[0].confidence
            if second:
                seconds[image] = second[0][0].text
            if page is not None:
                other = second[0] if second else comparison.captions.get(image)
                page.add(example, first, other)
        if skipped:
            print(f"{counted(len(skipped), 'image')} skipped, e.g. {skipped[0]}", file=sys.stderr)
        if options.output is not None:
            _write_results(options, captions, names)
        if options.compare_checkpoint:
            comparison = comparison._replace(system=options.compare_checkpoint, captions=seconds)
        kept = {image: references[image] for image in paths}
        name, device = model_name(options.checkpoint), str(model.device)
        scored = score_images(kept, captions, wanted, names, paths, name, comparison, device)
        _add_calibration(scored, confidences, model, config_of(SearchConfig, options))
        if page is not None:
            page.finish(scored, skipped)
    show_scores(scored.scores, wanted.json)
    say_written(len(captions), options.output, options.report)


def _add_calibration(scored: Any, confidences: dict[Any, float | None], model: Any, search: SearchConfig) -> None:
    """Add the calibration of the confidences to the scores; say so if there are none because of the search."""
    from captioner.metrics.calibration import summary

    if model.calibration is None or len(scored.ids) == 1:  # whose CIDEr is 0
        return
    if not model.has_confidence(search):
        reasons = "; ".join(model.calibration.differences(search.for_model(model.max_length)))
        print(f"no confidences: the model is calibrated for another search ({reasons})", file=sys.stderr)
        return
    least = model.calibration.cider
    right = 100 * scored.per_image[0].cider >= least
    scored.scores["calibration"] = {"cider": least, **summary([confidences[image] for image in scored.ids], right)}


def _caption(
    options: Any, models: Sequence[Any], workers: int, examples: Sequence[Any], skipped: list[str]
) -> Iterator[tuple[Any, list[Any]]]:
    """Each example with the captions of every model; with --skip_bad_images unreadable ones go to `skipped` instead."""
    from captioner.data.dataset import clips_per_batch
    from captioner.progress import Bar
    from captioner.reports.evaluation import N_BEST

    search = config_of(SearchConfig, options)
    if options.report and not search.sample:  # the page shows several captions of the beam
        search = replace(search, n_best=max(search.n_best, min(search.beam, N_BEST)))
    paths = [example.path for example in examples]
    results = [
        model.caption_files(paths, search, options.batch_size, workers, bool(options.report) and model.has_attention)
        for model in models
    ]
    batch = clips_per_batch(options.batch_size, models[0].frames)
    for example, *captions in Bar(zip(examples, *results, strict=True), "captions", len(examples), batch=batch):
        error = next((each for each in captions if isinstance(each, UserError)), None)
        if error is None:
            yield example, captions
        elif options.skip_bad_images:
            skipped.append(str(error))
        else:
            raise UserError(f"{error}: repair or remove it, or leave such images out with --skip_bad_images")


def _write_results(options: Any, captions: dict[Any, str], names: dict[Any, str]) -> None:
    """Write COCO results; in formats without numeric ids the image_id is the file name."""
    from captioner.data.formats import detect_format

    numbered = detect_format(options.annotations).name in ("coco", "karpathy")
    results = [{"image_id": i if numbered else names[i], "caption": text} for i, text in captions.items()]
    write_json(Path(options.output), results)


def _open_report(options: Any, models: Sequence[Any], count: int) -> Any:
    """The page of ``--report`` as a context manager; without the option, None as one."""
    from captioner.reports.evaluation import EvaluationPage
    from captioner.reports.page import short_path, short_paths

    if not options.report:
        return nullcontext()
    heading = f"{report_heading(options, count)} · {short_path(options.annotations)}"
    second = options.compare_checkpoint or options.compare
    paths = [*(options.checkpoint or []), *([second] if second else [])]
    shown = dict(zip(paths, short_paths(paths), strict=True))
    first = [shown[path] for path in options.checkpoint] if options.checkpoint else None
    names = [model_name(first), *([shown[second]] if second else [])]
    attention = any(model.has_attention for model in models)
    folders = [options.images or "", os.path.dirname(options.annotations)]
    return EvaluationPage(Path(options.report), heading, count, attention, names, options.command_line, folders)
