"""Caption a validation set, each picture once, and score the captions.

Example: captioner evaluate --annotations captions_val.json --images val --beam 5 --output results.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner.commands import config_of
from captioner.commands.predict import add_model_arguments, load_model
from captioner.config import SearchConfig


def configure(parser: Any) -> None:
    """Declare the options."""
    from captioner.results import ScoreOptions

    add_model_arguments(parser)
    parser.add_argument("--annotations", type=str, required=True, help="COCO captions JSON with the references")
    parser.add_argument("--images", type=str, required=True, help="folder with the pictures")
    parser.add_argument("--output", type=str, help="write the captions to this COCO results JSON")
    parser.add_argument("--skip_bad_images", type=bool, default=False, help="leave out what cannot be read")
    parser.add_class_arguments(ScoreOptions)


def run(options: Any) -> None:
    """Caption and score; see the module's docstring."""
    import sys

    from tqdm import tqdm

    from captioner.errors import UserError
    from captioner.formats import read_coco, write_json
    from captioner.results import ScoreOptions, score_captions, show_scores

    annotations, images, skip = Path(options.annotations), Path(options.images), options.skip_bad_images
    wanted = config_of(ScoreOptions, options)
    model, workers = load_model(options)
    examples, skipped = read_coco(annotations, images, skip, "--skip_bad_images", albums=model.frames > 0)
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
    if options.output is not None:
        write_json(Path(options.output), [{"image_id": i, "caption": text} for i, text in captions.items()])
    known = {example.image_id: example for example in examples if example.image_id in captions}
    references = {image: list(example.captions) for image, example in known.items()}
    names = {image: example.path.relative_to(images).as_posix() for image, example in known.items()}
    pictures = {image: example.path for image, example in known.items()}
    show_scores(score_captions(references, captions, wanted, names, pictures), wanted.metrics)
