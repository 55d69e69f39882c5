"""Scores of captions: BLEU, ROUGE-L and CIDEr-D with coco-caption's values, intervals and a paired test.

The public functions can be imported from here, without torch, Lightning or nltk. Example::

    captioner.metrics.score(["a dog runs", "two men"], [["A dog runs.", "a brown dog"], ["Two men sit."]])["CIDEr"]
"""

# ruff: noqa: F401
from captioner.metrics.ptb_tokenizer import ptb_tokenize, ptb_tokenize_all
from captioner.metrics.scores import (
    NAMES,
    DocumentFrequencies,
    PerImage,
    bleu,
    bleu_counts,
    bleu_from_counts,
    cider,
    cider_d,
    corpus_scores,
    distinct,
    distinct_n,
    ending_share,
    nltk_bleu,
    per_image,
    rouge_l,
    score_tokens,
    seen_share,
    self_bleu,
)
from captioner.metrics.significance import compare, intervals
from captioner.metrics.strings import score
