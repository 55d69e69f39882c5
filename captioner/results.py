"""Scored captions as people read them: a table on the screen, a JSON file beside it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner import metrics
from captioner.errors import UserError
from captioner.formats import write_json
from captioner.vocabulary import tokenize

TOKENIZER = "captioner-words"


def score_captions(references: Mapping[Any, list[str]], captions: Mapping[Any, str]) -> dict[str, Any]:
    """Score captions by image id; see :func:`captioner.metrics.score`.

    ``CIDEr-shuffled`` is the CIDEr-D of the same captions dealt out to other images of the set: captions that come from
    the picture fall to a fraction, captions that do not keep their score.

    Raises:
        UserError: the ids of the captions and of the references are not the same.
    """
    missing = sorted(set(references) - set(captions), key=str)
    extra = sorted(set(captions) - set(references), key=str)
    if missing or extra:
        raise UserError(
            f"captions and annotations are of different images: {len(missing)} without a caption "
            f"(e.g. {missing[:3]}), {len(extra)} without references (e.g. {extra[:3]})"
        )
    ids = list(references)
    hypotheses = [tokenize(captions[i]) for i in ids]
    words = [[tokenize(caption) for caption in references[i]] for i in ids]
    scores = metrics.score(words, hypotheses, TOKENIZER)
    order = list(range(len(ids)))
    random.Random(0).shuffle(order)
    dealt: list[list[str]] = [[]] * len(ids)
    for here, there in zip(order, order[1:] + order[:1], strict=True):  # nobody keeps their own
        dealt[there] = hypotheses[here]
    scores["CIDEr-shuffled"] = 100 * float(metrics.cider_d(words, dealt).mean())
    return scores


def show_scores(scores: Mapping[str, Any], file: str | None) -> None:
    """Print the scores with their signature; write them to `file`, too, if one is named."""
    if file is not None:
        write_json(Path(file), dict(scores))
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"):
        print(f"{name:<10}{scores[name]:8.2f}")
    print(f"{'distinct':<10}{scores['distinct']:8.2f} % of {scores['images']} captions")
    print(f"{'length':<10}{scores['mean_length']:8.2f} words")
    print(f"CIDEr with the captions shuffled among the images: {scores['CIDEr-shuffled']:.2f}")
    nltk = " / ".join(f"{value:.2f}" for value in scores["nltk"].values())
    print(f"nltk's corpus_bleu on the same words: {nltk} (lower where captions are shorter than n words)")
    print(scores["signature"])
