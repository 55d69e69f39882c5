"""Scored captions as people read them: a table on the screen, a JSON file beside it."""

from __future__ import annotations

import csv
import io
import os
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from captioner import metrics
from captioner.data.annotations import match, read_references, read_results
from captioner.data.vocabulary import tokenize
from captioner.errors import UserError
from captioner.files import ID, check_writable, write_json, write_text
from captioner.metrics import external, significance
from captioner.metrics.ptb_tokenizer import ptb_tokenize_all

TOKENIZERS: dict[str, Callable[[Iterable[str]], list[list[str]]]] = {
    "ptb": ptb_tokenize_all,
    "words": lambda texts: [tokenize(text) for text in texts],
    "none": lambda texts: [text.split() for text in texts],
}
RESAMPLES, ROUNDS = 1000, 10_000
TEST = f"paired bootstrap ({RESAMPLES:,} resamples), two-sided approximate randomisation ({ROUNDS:,} rounds)"
SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored and how, by the names of the options.

    Args:
        json: also write the scores to this JSON file
        tokenizer: ptb: coco-caption's words; words: captioner's own; none: split at white space, for captions that are
            tokenised already
        partial: leave out images without a caption and captions of other images
        intervals: add 95 % bootstrap intervals
        compare: results of another system on the same images, to test the difference
        per_image: write the scores of each image to this .json or .csv file
        training: captions of the training set, to say how many captions are copies
        nltk: add BLEU by nltk
        meteor: add METEOR 1.5, by Java and pycocoevalcap (pip install pycocoevalcap; read the licences of its parts)
        spice: add SPICE, likewise; it wants 8 GB and Stanford's models
        clip_score: add CLIPScore by this CLIP, a name on the Hugging Face hub or a folder (pip install transformers)
    """

    json: str | None = None
    tokenizer: Literal["ptb", "words", "none"] = "ptb"
    partial: bool = False
    intervals: bool = True
    compare: str | None = None
    per_image: str | None = None
    training: str | None = None
    nltk: bool = False
    meteor: bool = False
    spice: bool = False
    clip_score: str | None = None

    def __post_init__(self) -> None:
        if self.per_image is not None and Path(self.per_image).suffix not in (".json", ".csv"):
            raise UserError(f"--per_image is {self.per_image!r}: expected a name that ends in .json or .csv")


class Others(NamedTuple):
    """What the captions are to be compared with, opened."""

    name: str | None = None
    """What the other system is called."""
    captions: Mapping[Any, str] = {}
    """Its captions by image id."""
    left_out: Mapping[str, int] = {}
    """How many images and captions were left out, if any."""
    training: Sequence[str] | None = None
    """Captions of the training set."""


class Scored(NamedTuple):
    """Captions with their scores, those of each image, and the words that were scored; lists over the images."""

    scores: dict[str, Any]
    ids: list[Any]
    images: metrics.PerImage
    second: metrics.PerImage | None
    """Of the other system, where there is one."""
    words: list[list[str]]
    second_words: list[list[str]]
    references: list[list[list[str]]]


def open_others(options: ScoreOptions, references: Mapping[Any, Any], names: Mapping[Any, str] | None = None) -> Others:
    """Read the files that ``compare`` and ``training`` name, and find out whether the others can be written.

    Whoever captions for an hour calls this before it; arguments and errors are those of :func:`score_images`.
    """
    for path in (options.json, options.per_image):
        if path is not None:
            check_writable(Path(path))
    others = Others()
    if options.compare is not None:
        results = read_results(Path(options.compare))
        found, left_out = _of_images(references, results, names, options.compare, options.partial)
        others = Others(options.compare, found, left_out)
    if options.training is not None:
        training = read_references(Path(options.training))
        others = others._replace(training=[caption for captions in training.values() for caption in captions])
    return others


def score_captions(
    references: Mapping[Any, list[str]], captions: Mapping[Any, str], *more: Any, **named: Any
) -> dict[str, Any]:
    """The scores of captions alone; see :func:`score_images`."""
    return score_images(references, captions, *more, **named).scores


def score_images(
    references: Mapping[Any, list[str]],
    captions: Mapping[Any, str],
    options: ScoreOptions = ScoreOptions(),
    names: Mapping[Any, str] | None = None,
    paths: Mapping[Any, str | os.PathLike] | None = None,
    where: str = "captions",
    others: Others | None = None,
) -> Scored:
    """Score captions of images and write the ``per_image`` file of the options.

    What is in the scores beside the numbers of :func:`captioner.metrics.score`: ``CIDEr-shuffled`` is the CIDEr-D of
    the same captions dealt out to other images of the set (captions that come from the image fall to a fraction,
    captions that do not keep their score); ``intervals``; and, where there are any, ``missing`` and ``extra`` (how many
    images and captions were left out), ``seen_in_training`` (per cent), ``compare``, ``METEOR``, ``SPICE`` and
    ``CLIPScore``. Of the last three, one that cannot be had is left out with a line on stderr.

    Args:
        references: captions by image id.
        captions: a caption by image id or file name, as :func:`captioner.data.annotations.match` takes them.
        options: what to compute.
        names: file names by image id.
        paths: files by image id, for CLIPScore.
        where: what to call the captions in a message, such as the file they come from.
        others: what :func:`open_others` found, also for more images than these; without it, it is called here.

    Raises:
        UserError: as the readers of files and `match` do, images that are not the same unless ``partial`` is true, and
            no image left in any case.
    """
    found, left_out = _of_images(references, captions, names, where, options.partial)
    others = others or open_others(options, references, names)
    if others.name is not None:
        found = {image: caption for image, caption in found.items() if image in others.captions}
        if not found:
            raise UserError(f"{where} and {others.name} have no image in common")

    words = TOKENIZERS[options.tokenizer]
    ids = list(found)
    hypotheses = words(found.values())
    every = iter(words(caption for image in ids for caption in references[image]))
    refs = [list(islice(every, len(references[image]))) for image in ids]
    images = metrics.per_image(refs, hypotheses)
    scores = metrics.score(refs, hypotheses, options.tokenizer, options.nltk, images)
    scores["CIDEr-shuffled"] = 100 * float(metrics.cider_d(refs, _dealt_out(hypotheses)).mean())
    scores |= left_out
    if options.intervals:
        scores["intervals"] = significance.intervals(images, RESAMPLES)
    if others.training is not None:
        scores["seen_in_training"] = 100 * metrics.seen_share(hypotheses, words(others.training))
    second, second_words = None, list[list[str]]()
    if others.name is not None:
        second_words = words(others.captions[image] for image in ids)
        second = metrics.per_image(refs, second_words)
        both = [metrics.corpus_scores(each.table().sum(axis=0), len(ids)).tolist() for each in (images, second)]
        tested = significance.compare(images, second, RESAMPLES, ROUNDS)
        scores["compare"] = {
            "first": where,
            "second": others.name,
            "test": TEST,
            **others.left_out,
            **{
                name: {"first": a, "second": b, **tested[name]} for name, a, b in zip(metrics.NAMES, *both, strict=True)
            },
        }
    _add_external(scores, options, refs, hypotheses, found, paths or {})
    if options.per_image is not None:
        _write_per_image(Path(options.per_image), found, each_image(images))
    return Scored(scores, ids, images, second, hypotheses, second_words, refs)


def each_image(images: metrics.PerImage) -> list[dict[str, float]]:
    """The scores of each image, × 100: BLEU-4 of this image alone, ROUGE-L, CIDEr."""
    values = 100 * np.column_stack([metrics.bleu_from_counts(images.counts)[:, -1], images.rouge, images.cider])
    return [dict(zip(("BLEU-4", "ROUGE-L", "CIDEr"), row, strict=True)) for row in values.tolist()]


def show_scores(scores: Mapping[str, Any], file: str | None) -> None:
    """Print the scores with their signature; write them to `file`, too, if one is named."""
    if file is not None:
        write_json(Path(file), dict(scores))
    intervals = scores.get("intervals", {})
    for name in (*metrics.NAMES, "METEOR", "SPICE", "CLIPScore"):
        if name in scores:
            interval = "   [{low:.2f}, {high:.2f}]".format(**intervals[name]) if name in intervals else ""
            print(f"{name:<10}{scores[name]:8.2f}{interval}")
    if intervals:
        print(f"[ ] 95 % of {RESAMPLES:,} bootstrap resamples of the images")
    print(f"{'distinct':<10}{scores['distinct']:8.2f} % of {scores['images']} captions")
    print(f"{'distinct-n':<10}{scores['distinct-1']:8.2f} % of the words, {scores['distinct-2']:.2f} % of the bigrams")
    print(f"{'self-BLEU':<10}{scores['self-BLEU-4']:8.2f} (BLEU-4 with the other captions as references)")
    print(f"{'vocabulary':<10}{scores['vocabulary']:8} words")
    print(f"{'length':<10}{scores['mean_length']:8.2f} words")
    if "seen_in_training" in scores:
        print(
            f"{'seen':<10}{scores['seen_in_training']:8.2f} % of the captions stand word for word in the training set"
        )
    print(f"CIDEr with the captions shuffled among the images: {scores['CIDEr-shuffled']:.2f}")
    if "nltk" in scores:
        nltk = " / ".join(f"{value:.2f}" for value in scores["nltk"].values())
        print(f"nltk's corpus_bleu on the same words: {nltk} (lower where captions are shorter than n words)")
    print(scores["signature"])
    if "compare" in scores:
        _show_compared(scores["compare"])


def _show_compared(compared: Mapping[str, Any]) -> None:
    print(f"\nfirst {compared['first']}, second {compared['second']}, on the same images; {compared['test']}")
    print(f"{'':<10}{'first':>9}{'second':>9}{'difference':>12}   {'95 % interval':<20}{'p':>8}")
    for name in metrics.NAMES:
        row = compared[name]
        interval = "[{low:+.2f}, {high:+.2f}]".format(**row)
        scores = f"{row['first']:9.2f}{row['second']:9.2f}{row['difference']:+12.2f}"
        print(f"{name:<10}{scores}   {interval:<20}{row['p']:8.4f}")


def _of_images(
    references: Mapping[ID, Any], captions: Mapping[ID, str], names: Mapping[ID, str] | None, where: str, partial: bool
) -> tuple[dict[ID, str], dict[str, int]]:
    """The captions by image id, and how many images and captions are left out, if any."""
    found, missing, extra = match(references, captions, names, where)
    if not found:
        raise UserError(
            f"{where}: none of its {len(captions)} images ({_some(list(captions))} …) is among the "
            f"{len(references)} of the annotations ({_some(list(references))} …); name files that belong together"
        )
    if not missing and not extra:
        return found, {}
    said = f"{where}: {len(missing)} without a caption{_example(missing)}"
    said += f", {len(extra)} without references{_example(extra)}"
    if not partial:
        raise UserError(f"{said}; --partial scores the {len(found)} images that are in both")
    print(f"{said} are left out; {len(found)} images are in both", file=sys.stderr)
    return found, {"missing": len(missing), "extra": len(extra)}


def _example(ids: Sequence[ID]) -> str:
    return f" (e.g. {_some(ids)})" if ids else ""


def _some(ids: Sequence[ID]) -> str:
    return str(list(ids[:SHOWN]))


def _dealt_out(captions: list[Any]) -> list[Any]:
    """Every caption at the place of another one, always in the same way."""
    order = list(range(len(captions)))
    random.Random(0).shuffle(order)
    dealt = list(captions)
    for here, there in zip(order, order[1:] + order[:1], strict=True):  # nobody keeps their own
        dealt[there] = captions[here]
    return dealt


def _add_external(
    scores: dict[str, Any],
    options: ScoreOptions,
    references: list[list[list[str]]],
    hypotheses: list[list[str]],
    captions: Mapping[ID, str],
    images: Mapping[ID, str | os.PathLike],
) -> None:
    """METEOR, SPICE and CLIPScore where they are asked for and can be had."""

    def clip_score() -> float:
        assert options.clip_score is not None
        without = [image for image in captions if image not in images]
        if without:
            raise external.Unavailable(f"{len(without)} images{_example(without)} have no file name within the folder")
        return external.clip_score([images[image] for image in captions], list(captions.values()), options.clip_score)

    for name, wanted, compute in (
        ("METEOR", options.meteor, lambda: external.meteor(references, hypotheses)),
        ("SPICE", options.spice, lambda: external.spice(references, hypotheses)),
        ("CLIPScore", options.clip_score is not None, clip_score),
    ):
        if wanted:
            try:
                scores[name] = 100 * compute()
            except external.Unavailable as reason:
                print(f"{name} is skipped: {reason}", file=sys.stderr)
    if "CLIPScore" in scores:
        scores["signature"] += f" | CLIPScore:{options.clip_score}"


def _write_per_image(path: Path, captions: Mapping[ID, str], scores: Sequence[Mapping[str, float]]) -> None:
    """A row for each image: id, caption, scores."""
    rows = [
        {"image_id": image, "caption": caption, **each}
        for (image, caption), each in zip(captions.items(), scores, strict=True)
    ]
    if path.suffix == ".json":
        write_json(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
