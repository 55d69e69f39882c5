"""Captions to numbers: BLEU, ROUGE-L and CIDEr-D with coco-caption's values; needs neither torch nor Lightning.

The functions of :mod:`captioner.metrics.scores` are available here: ``captioner.metrics.score(references,
hypotheses)``.
"""

from captioner.metrics.ptb_tokenizer import ptb_tokenize
from captioner.metrics.scores import (
    NAMES,
    PerImage,
    bleu,
    bleu_counts,
    bleu_from_counts,
    cider,
    cider_d,
    distinct,
    distinct_n,
    ending_in,
    from_sums,
    nltk_bleu,
    per_image,
    rouge_l,
    score,
    seen_share,
    self_bleu,
    vocabulary_used,
)

__all__ = [
    "NAMES",
    "PerImage",
    "bleu",
    "bleu_counts",
    "bleu_from_counts",
    "cider",
    "cider_d",
    "distinct",
    "distinct_n",
    "ending_in",
    "from_sums",
    "nltk_bleu",
    "per_image",
    "ptb_tokenize",
    "rouge_l",
    "score",
    "seen_share",
    "self_bleu",
    "vocabulary_used",
]
