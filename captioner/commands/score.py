"""Score captions that are there already: BLEU, ROUGE-L and CIDEr-D as coco-caption computes them.

Example: captioner score --annotations captions_val2017.json --results results.json --metrics metrics.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("--annotations", type=str, required=True, help="COCO captions JSON with the references")
    parser.add_argument("--results", type=str, required=True, help="COCO results JSON: [{image_id, caption}, …]")
    parser.add_argument("--metrics", type=str, help="write the scores to this JSON file, too")


def run(options: Any) -> None:
    """Score; see the module's docstring."""
    from captioner.formats import read_references, read_results
    from captioner.results import score_captions, show_scores

    references = read_references(Path(options.annotations))
    show_scores(score_captions(references, read_results(Path(options.results))), options.metrics)
