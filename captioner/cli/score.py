"""Score captions of any system: BLEU, ROUGE-L and CIDEr-D as coco-caption computes them.

Example: captioner score --annotations captions_val2017.json --results results.json --json metrics.json

The results are COCO results, {"id": "caption"} or JSON Lines; images are named by id or by file name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner.cli.options import add_split_arguments, config_of

MAIN = "annotations images split results tokenizer json partial compare per_image training document_frequency"

READS = "annotations list results compare training document_frequency"
WRITES = "json per_image"


def configure(parser: Any) -> None:
    """Declare the options."""
    from captioner.metrics.scoring import ScoreOptions

    parser.add_argument(
        "--annotations",
        type=str,
        required=True,
        help="references, in any format of docs/data.md, or {id: [caption, …]}",
    )
    add_split_arguments(parser)
    parser.add_argument("--results", type=str, required=True, help="captions, one for each image, as JSON (Lines)")
    parser.add_class_arguments(ScoreOptions)


def run(options: Any) -> None:
    """Score; see the module's docstring."""
    from captioner.data.annotations import read_references
    from captioner.errors import UserError
    from captioner.files import escapes_folder
    from captioner.metrics.result_files import read_results
    from captioner.metrics.scoring import ScoreOptions, score_images, show_scores

    wanted = config_of(ScoreOptions, options)
    images: dict[Any, Path] = {}
    if wanted.clip_score is not None and not (options.images and Path(options.images).is_dir()):
        raise UserError(f"--images is {options.images!r}: expected the folder of the images, for --clip_score")
    references, names = read_references(
        options.annotations, options.images, options.split, columns=options.columns, listed=options.list
    )
    results = read_results(Path(options.results))
    if wanted.clip_score is not None:
        for image in references:
            name = names.get(image, image)
            if isinstance(name, str) and not escapes_folder(name):
                images[image] = Path(options.images, name)
    result = score_images(references, results, wanted, names, images, options.results)
    show_scores(result.scores, wanted.json)
