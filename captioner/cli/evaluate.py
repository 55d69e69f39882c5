"""Caption a validation set, each image once, and score the captions.

Example: captioner evaluate --annotations captions_val.json --images val --output results.json --report report.html
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from captioner.cli.options import (
    add_model_arguments,
    add_split_arguments,
    config_of,
    load_model,
    model_name,
    report_heading,
)
from captioner.config import SearchConfig

MAIN = """
checkpoint device annotations images split beam output report compare compare_checkpoint metrics
skip_bad_images
"""


def configure(parser: Any) -> None:
    """Declare the options."""
    from captioner.metrics.scoring import ScoreOptions

    add_model_arguments(parser)
    parser.add_argument("--annotations", type=str, required=True, help="the references, in any layout of docs/data.md")
    parser.add_argument("--images", type=str, help="folder with the images, unless the layout says where they are")
    add_split_arguments(parser)
    parser.add_argument("--output", type=str, help="write the captions to this COCO results JSON")
    parser.add_argument("--skip_bad_images", type=bool, default=False, help="leave out what cannot be read")
    parser.add_argument("--compare_checkpoint", type=str, help="caption with this model, too, and compare the two")
    parser.add_argument(
        "--report",
        type=str,
        help="write an HTML page, too: the scores, and every image with its captions, sorted by CIDEr",
    )
    parser.add_class_arguments(ScoreOptions)


def run(options: Any) -> None:
    """Caption and score; see the module's docstring."""
    import sys
    from dataclasses import replace
    from itertools import repeat

    from tqdm import tqdm

    from captioner.data.annotations import read
    from captioner.data.formats import recognise
    from captioner.errors import UserError
    from captioner.files import check_writable, write_json
    from captioner.metrics.scoring import ScoreOptions, open_others, score_images, show_scores
    from captioner.models.captioner import load
    from captioner.reports.evaluation import N_BEST

    skip = options.skip_bad_images
    wanted = config_of(ScoreOptions, options)
    if wanted.compare and options.compare_checkpoint:
        raise UserError("--compare and --compare_checkpoint both name the system to compare with: leave one out")
    model, workers = load_model(options)
    second = load(options.compare_checkpoint, model.device) if options.compare_checkpoint else None
    examples, skipped = read(
        options.annotations,
        options.images,
        options.split,
        columns=options.columns,
        listed=options.list,
        skip_bad=skip,
        option="--skip_bad_images",
        albums=model.frames > 0,
    )
    references = {example.image_id: list(example.captions) for example in examples}
    names = {example.image_id: example.name.replace(os.sep, "/") for example in examples}
    # A results file that lacks the very images that are skipped here is as good as a whole one.
    others = open_others(replace(wanted, partial=wanted.partial or skip), references, names)
    if options.output is not None:
        check_writable(Path(options.output))

    search = config_of(SearchConfig, options)
    if options.report and not search.sample:  # the page shows what the beam has found anyway
        search = replace(search, n_best=max(search.n_best, min(search.beam, N_BEST)))

    def captioned(by: Any) -> Any:
        maps = bool(options.report) and by.attends
        return by.caption_files(paths, search, options.batch_size, workers, maps)

    paths = [example.path for example in examples]
    found, too = captioned(model), repeat(None, len(paths)) if second is None else captioned(second)
    captions: dict[Any, str] = {}
    seconds: dict[Any, str] = {}
    with _page(options, [model, *([second] if second else [])], len(examples)) as page:
        bar = tqdm(found, total=len(examples), unit="image", desc="captions", disable=None)  # no bar in a log
        for example, caption, other in zip(examples, bar, too, strict=True):
            bad = next((each for each in (caption, other) if isinstance(each, UserError)), None)
            if bad is not None and not skip:
                raise UserError(f"{bad}: mend or remove it, or use --skip_bad_images to skip such images")
            if bad is not None:
                skipped.append(str(bad))
                continue
            image = example.image_id
            captions[image] = caption[0].text
            if other is not None:
                seconds[image] = other[0].text
            if page is not None:
                shown = other if other is not None else others.captions.get(image)
                page.add(image, example.path, names[image], references[image], caption, shown)
        if skipped:
            print(f"{len(skipped)} images skipped, e.g. {skipped[0]}", file=sys.stderr)
        if options.output is not None:
            numbered = recognise(options.annotations) in ("coco", "karpathy")  # elsewhere known by its name
            results = [{"image_id": i if numbered else names[i], "caption": text} for i, text in captions.items()]
            write_json(Path(options.output), results)
        if second is not None:
            others = others._replace(name=options.compare_checkpoint, captions=seconds)
        known = {example.image_id: example for example in examples if example.image_id in captions}
        scored = score_images(
            {image: references[image] for image in known},
            captions,
            wanted,
            {image: names[image] for image in known},
            {image: example.path for image, example in known.items()},
            model_name(options.checkpoint),
            others,
        )
        if page is not None:
            page.failures += skipped
            page.finish(scored)
    show_scores(scored.scores, wanted.metrics)


def _page(options: Any, models: list[Any], count: int) -> Any:
    """The page of ``--report``, to be opened by ``with``; None where nobody asks for it."""
    from contextlib import nullcontext

    from captioner.reports.evaluation import Evaluation

    if not options.report:
        return nullcontext()
    heading = f"{report_heading(options, count)} · {options.annotations}"
    against = options.compare_checkpoint or options.compare
    names = [model_name(options.checkpoint), *([against] if against else [])]
    return Evaluation(Path(options.report), heading, count, any(model.attends for model in models), names)
