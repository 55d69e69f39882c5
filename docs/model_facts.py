"""Writes digest, scores and examples of the shipped model into captioner/deploy/shipped_model.yaml, for its model card.

captioner evaluate --annotations flickr8k/captions_val.json --images flickr8k/val --json flickr8k.json
captioner evaluate --annotations everyday/captions_val.json --images everyday/val --json everyday.json
python docs/model_facts.py flickr8k.json everyday.json    # in the order of the results in the file
"""

import json
import sys
from pathlib import Path

import yaml

import captioner
from captioner.deploy.model_card import METRICS, SHIPPED
from captioner.models.checkpoint import file_digest, resolve_checkpoint

PHOTOS = sorted((Path(__file__).parents[1] / "data" / "photos").glob("*.jpg"))


def scores(file: str) -> dict:
    """The scores of ``captioner evaluate --json`` that a card shows, with their intervals, to two decimals."""
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    rounded = {name: round(found[name], 2) for name in METRICS}
    intervals = {name: {k: round(v, 2) for k, v in found["intervals"][name].items()} for name in METRICS}
    return {**rounded, "intervals": intervals}


def main(files: list[str]) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    facts = yaml.safe_load(text)
    facts["digest"] = file_digest(resolve_checkpoint(None))
    for result, file in zip(facts["results"], files, strict=True):
        result["scores"] = scores(file)
    facts["examples"] = dict(zip([photo.name for photo in PHOTOS], captioner.load().caption(PHOTOS), strict=True))
    SHIPPED.write_text(
        comment + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
