"""Caption a validation set, each picture once, and score the captions.

Example: captioner evaluate --annotations captions_val.json --images val --beam 5 --output results.json
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from captioner.commands import config_of
from captioner.commands.predict import add_model_arguments, load_model
from captioner.config import SearchConfig


def add_split_arguments(parser: Any) -> None:
    """The options that say which of the annotations are meant."""
    parser.add_argument("--split", type=str, default="val", help="which split, where the annotations have several")
    parser.add_argument("--list", type=str, help="file with a picture's name in each line: only these")
    parser.add_argument("--columns", type=str, help="IMAGE,CAPTION: the columns of a table, where not the usual ones")


def configure(parser: Any) -> None:
    """Declare the options."""
    from captioner.results import ScoreOptions

    add_model_arguments(parser)
    parser.add_argument("--annotations", type=str, required=True, help="the references, in any layout of docs/data.md")
    parser.add_argument("--images", type=str, help="folder with the pictures, unless the layout says where they are")
    add_split_arguments(parser)
    parser.add_argument("--output", type=str, help="write the captions to this COCO results JSON")
    parser.add_argument("--skip_bad_images", type=bool, default=False, help="leave out what cannot be read")
    parser.add_class_arguments(ScoreOptions)


def run(options: Any) -> None:
    """Caption and score; see the module's docstring."""
    import sys

    from tqdm import tqdm

    from captioner.errors import UserError
    from captioner.formats import read, recognise, write_json
    from captioner.results import ScoreOptions, score_captions, show_scores

    skip = options.skip_bad_images
    wanted = config_of(ScoreOptions, options)
    model, workers = load_model(options)
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
    found = model.caption_files(
        [example.path for example in examples], config_of(SearchConfig, options), options.batch_size, workers
    )
    captions: dict[Any, str] = {}
    bar = tqdm(found, total=len(examples), unit="image", desc="captions", disable=None)  # no bar in a log
    for example, caption in zip(examples, bar, strict=True):
        if not isinstance(caption, UserError):
            captions[example.image_id] = caption[0].text
        elif skip:
            skipped.append(str(caption))
        else:
            raise UserError(f"{caption}: mend or remove it, or use --skip_bad_images true to skip such pictures")
    if skipped:
        print(f"{len(skipped)} pictures skipped, e.g. {skipped[0]}", file=sys.stderr)
    known = {example.image_id: example for example in examples if example.image_id in captions}
    if options.output is not None:
        numbered = recognise(options.annotations) in ("coco", "karpathy")  # elsewhere a picture is known by its name
        results = [
            {"image_id": i if numbered else known[i].name.replace(os.sep, "/"), "caption": text}
            for i, text in captions.items()
        ]
        write_json(Path(options.output), results)
    references = {image: list(example.captions) for image, example in known.items()}
    names = {image: example.name.replace(os.sep, "/") for image, example in known.items()}
    pictures = {image: example.path for image, example in known.items()}
    show_scores(score_captions(references, captions, wanted, names, pictures), wanted.metrics)
