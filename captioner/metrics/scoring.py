"""Scores of captions by image id: computed, compared with another system, printed, and written to files."""

from __future__ import annotations

import csv
import io
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from captioner import metrics
from captioner.data.annotations import read_references
from captioner.errors import UserError, counted, decimals
from captioner.files import ID, check_writable, write_json, write_text
from captioner.metrics import external
from captioner.metrics.calibration import show_error
from captioner.metrics.result_files import match_results, read_results
from captioner.metrics.tokenizers import TOKENIZERS, tokenize_references

RESAMPLES, ROUNDS = 1000, 10_000
TEST = f"paired bootstrap ({RESAMPLES:,} resamples), two-sided approximate randomisation ({ROUNDS:,} rounds)"
EXTERNAL = ("METEOR", "SPICE", "CLIPScore")
SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class ScoreOptions:
    """How captions are scored.

    Args:
        json: also write the scores to this JSON file
        tokenizer: ptb: coco-caption's tokens; words: captioner's own; char: characters, for Chinese, Japanese and Thai;
            none: split at white space (tokenised captions). auto is ptb, or char for a model of characters
        partial: leave out images without a caption and captions without an image
        intervals: add 95 % bootstrap intervals
        compare: results of another system on the same images, to test the difference
        document_frequency: captions, of which CIDEr takes how many images have a word, instead of the references
        per_image: write the scores of each image to this .json or .csv file
        training: captions of the training set, to count the captions copied from it
        nltk: add BLEU by nltk
        meteor: add METEOR 1.5, by Java and pycocoevalcap (pip install pycocoevalcap; read the licences of its parts)
        spice: add SPICE, likewise; needs 8 GB of memory and Stanford's models
        clip_score: add CLIPScore by this CLIP, a name on the Hugging Face hub or a folder (pip install transformers)
    """

    json: str | None = None
    tokenizer: Literal["auto", "ptb", "words", "char", "none"] = "auto"
    partial: bool = False
    intervals: bool = True
    compare: str | None = None
    document_frequency: str | None = None
    per_image: str | None = None
    training: str | None = None
    nltk: bool = False
    meteor: bool = False
    spice: bool = False
    clip_score: str | None = None

    def __post_init__(self) -> None:
        if self.per_image is not None and Path(self.per_image).suffix not in (".json", ".csv"):
            raise UserError(f"--per_image is {self.per_image!r}: expected a name that ends in .json or .csv")


class Comparison(NamedTuple):
    """The other system and the training captions that captions are compared with."""

    system: str | None = None  # name of another system
    captions: Mapping[Any, str] = {}  # its captions by image id
    left_out: Mapping[str, int] = {}  # how many images and captions, if any
    training: Sequence[str] | None = None  # captions of the training set
    corpus: Sequence[Sequence[str]] | None = None  # the captions of each image of --document_frequency


class ScoringResult(NamedTuple):
    """Scores of one or two systems on N images, in the order of `ids`."""

    scores: dict[str, Any]  # of the set, see score_images
    ids: list[Any]
    per_image: list[metrics.PerImage]  # of each system
    words: list[list[list[str]]]  # tokenised captions of each system
    references: list[list[list[str]]]


def prepare_scoring(
    options: ScoreOptions, references: Mapping[Any, Any], names: Mapping[Any, str] | None = None
) -> Comparison:
    """Check that the output files can be written, and read the files of the options `compare` and `training`.

    Call it before captioning, to find errors early. Arguments are those of :func:`score_images`.
    """
    for path in (options.json, options.per_image):
        if path is not None:
            check_writable(Path(path))
    comparison = Comparison()
    if options.compare is not None:
        results = read_results(Path(options.compare))
        found, left_out = _match_images(references, results, names, options.compare, options.partial)
        comparison = Comparison(options.compare, found, left_out)
    if options.training is not None:
        training = chain.from_iterable(read_references(Path(options.training)).captions.values())
        comparison = comparison._replace(training=list(training))
    if options.document_frequency is not None:
        corpus = read_references(Path(options.document_frequency)).captions.values()
        comparison = comparison._replace(corpus=list(corpus))
    return comparison


def score_images(
    references: Mapping[Any, list[str]],
    captions: Mapping[Any, str],
    options: ScoreOptions = ScoreOptions(),
    names: Mapping[Any, str] | None = None,
    paths: Mapping[Any, str | os.PathLike] | None = None,
    where: str = "captions",
    comparison: Comparison | None = None,
    device: str | None = None,
) -> ScoringResult:
    """Score captions of images, and write the options' `per_image` file.

    The scores are those of :func:`captioner.metrics.score_tokens`; ``CIDEr-shuffled``, the CIDEr-D of the same captions
    moved to other images, which is low if captions depend on their images; ``intervals``; and, where they apply,
    ``missing`` and ``extra`` (numbers of images and captions left out), ``seen_in_training`` (per cent), ``compare``,
    ``METEOR``, ``SPICE`` and ``CLIPScore``. If one of the last three is unavailable, a line on stderr says why.

    Args:
        captions: a caption by image id or file name; see :func:`captioner.metrics.result_files.match_results`.
        names: file names by image id.
        paths: files by image id, for CLIPScore.
        where: name of the captions in messages, such as the file they are read from.
        comparison: from :func:`prepare_scoring`, may cover more images; called here if absent.
        device: for CLIPScore; by default cuda or cpu.
    """
    found, left_out = _match_images(references, captions, names, where, options.partial)
    comparison = comparison or prepare_scoring(options, references, names)
    if comparison.system is not None:
        found = {image: caption for image, caption in found.items() if image in comparison.captions}
        if not found:
            raise UserError(f"{where} and {comparison.system} have no image in common")

    tokenizer = "ptb" if options.tokenizer == "auto" else options.tokenizer
    ids, tokenize_all = list(found), TOKENIZERS[tokenizer]
    systems = [found] if comparison.system is None else [found, comparison.captions]
    words = [tokenize_all(system[image] for image in ids) for system in systems]
    refs = tokenize_references([references[image] for image in ids], tokenizer)
    frequencies = None
    if comparison.corpus is not None:
        frequencies = metrics.DocumentFrequencies(tokenize_references(comparison.corpus, tokenizer))
    per_image = [metrics.per_image(refs, captions, frequencies) for captions in words]
    scores = metrics.score_tokens(refs, words[0], tokenizer, options.nltk, per_image[0])
    if frequencies is not None:
        scores["signature"] += (
            f" | df:{Path(options.document_frequency or '').name} ({counted(frequencies.images, 'image')})"
        )
    scores["CIDEr-shuffled"] = 100 * float(metrics.cider_d(refs, _shuffled(words[0]), frequencies).mean())
    scores |= left_out
    if options.intervals:
        scores["intervals"] = metrics.intervals(per_image[0], RESAMPLES)
    if comparison.training is not None:
        scores["seen_in_training"] = 100 * metrics.seen_share(words[0], tokenize_all(comparison.training))
    if comparison.system is not None:
        named = {"first": where, "second": comparison.system, "test": TEST, **comparison.left_out}
        scores["compare"] = named | metrics.compare(per_image[0], per_image[1], RESAMPLES, ROUNDS)
    _add_external(scores, options, refs, words[0], found, paths or {}, device)
    if options.per_image is not None:
        _write_per_image(Path(options.per_image), found, image_scores(per_image[0]))
    return ScoringResult(scores, ids, per_image, words, refs)


def image_scores(per_image: metrics.PerImage) -> list[dict[str, float]]:
    """BLEU-4 (of this image alone), ROUGE-L and CIDEr of each image, times 100."""
    bleu = metrics.bleu_from_counts(per_image.counts)[:, -1]
    rows = 100 * np.column_stack([bleu, per_image.rouge, per_image.cider])
    return [dict(zip(("BLEU-4", "ROUGE-L", "CIDEr"), row, strict=True)) for row in rows.tolist()]


def show_scores(scores: Mapping[str, Any], file: str | None) -> None:
    """Print the scores with their signature, and write them to `file` if it is given."""
    if file is not None:
        write_json(Path(file), dict(scores))
    intervals = scores.get("intervals", {})
    for name in (*metrics.NAMES, *EXTERNAL):
        if name in scores:
            interval = "   [{low:.2f}, {high:.2f}]".format(**intervals[name]) if name in intervals else ""
            print(f"{name:<10}{scores[name]:8.2f}{interval}")
    if intervals:
        print(f"[ ] 95 % of {RESAMPLES:,} bootstrap resamples of the images")
    if scores["CIDEr"] == 0 and scores["images"] == 1:
        print(
            "CIDEr is 0 for one image, as it weighs words by how few images have them: --document_frequency names more"
        )
    print(f"{'distinct':<10}{scores['distinct']:8.2f} % of {counted(scores['images'], 'caption')}")
    print(f"{'distinct-n':<10}{scores['distinct-1']:8.2f} % of the words, {scores['distinct-2']:.2f} % of the bigrams")
    print(f"{'self-BLEU':<10}{scores['self-BLEU-4']:8.2f} (BLEU-4 with the other captions as references)")
    print(f"{'vocabulary':<10}{scores['vocabulary']:8} words")
    print(f"{'length':<10}{scores['mean_length']:8.2f} words")
    if "seen_in_training" in scores:
        print(f"{'seen':<10}{scores['seen_in_training']:8.2f} % of the captions are in the training set, word for word")
    print(f"CIDEr with the captions shuffled among the images: {scores['CIDEr-shuffled']:.2f}")
    if "calibration" in scores:
        found = scores["calibration"]
        shares = f"{found['right']:.1%} have a CIDEr of {found['cider']:g} or more, {found['confidence']:.1%} expected"
        print(f"confidence: {shares}; {show_error(found)}")
    if "nltk" in scores:
        nltk = " / ".join(f"{value:.2f}" for value in scores["nltk"].values())
        print(f"nltk's corpus_bleu on the same words: {nltk} (lower where captions are shorter than n words)")
    print(scores["signature"])
    if "compare" in scores:
        _show_comparison(scores["compare"])


def _show_comparison(compared: Mapping[str, Any]) -> None:
    print(f"\nfirst {compared['first']}, second {compared['second']}, on the same images; {compared['test']}")
    print(f"{'':<10}{'first':>9}{'second':>9}{'difference':>12}   {'95 % interval':<20}{'p':>8}")
    for name in metrics.NAMES:
        row = compared[name]
        low, high, difference = (decimals(row[key], "+.2f") for key in ("low", "high", "difference"))
        interval, scores = f"[{low}, {high}]", f"{row['first']:9.2f}{row['second']:9.2f}{difference:>12}"
        print(f"{name:<10}{scores}   {interval:<20}{row['p']:8.4f}")


def _match_images(
    references: Mapping[ID, Any], captions: Mapping[ID, str], names: Mapping[ID, str] | None, where: str, partial: bool
) -> tuple[dict[ID, str], dict[str, int]]:
    """The captions by image id, and the numbers of images and captions left out, if any."""
    found, missing, extra = match_results(references, captions, names, where)
    if not found:
        ids, known = (list(each)[:SHOWN] for each in (captions, references))
        raise UserError(
            f"{where}: none of its {counted(len(captions), 'image')} ({ids} …) is among the {len(references)} of the "
            f"annotations ({known} …): name files of the same images"
        )
    if not missing and not extra:
        return found, {}
    differ = f"{where}: not the images of the annotations: {len(missing)} without a caption{_example(missing)}, "
    differ += f"{len(extra)} without references{_example(extra)}"
    if not partial:
        raise UserError(f"{differ}; --partial scores those in both, {counted(len(found), 'image')}")
    print(f"{differ}: left out; {counted(len(found), 'image')} in both", file=sys.stderr)
    return found, {"missing": len(missing), "extra": len(extra)}


def _example(ids: Sequence[ID]) -> str:
    return f" (e.g. {list(ids[:SHOWN])})" if ids else ""


def _shuffled(captions: list[Any]) -> list[Any]:
    """The captions in another, fixed order, with no caption in its old place."""
    order = list(range(len(captions)))
    random.Random(0).shuffle(order)
    shuffled = list(captions)
    for old, new in zip(order, order[1:] + order[:1], strict=True):
        shuffled[new] = captions[old]
    return shuffled


def _add_external(
    scores: dict[str, Any],
    options: ScoreOptions,
    references: list[list[list[str]]],
    words: list[list[str]],
    captions: Mapping[ID, str],
    paths: Mapping[ID, str | os.PathLike],
    device: str | None,
) -> None:
    """Add METEOR, SPICE and CLIPScore where the options ask for them and they are available."""

    def clip_score(model: str) -> float:
        if without := [image for image in captions if image not in paths]:
            raise UserError(
                f"{counted(len(without), 'image')} without a file name within the folder{_example(without)}"
            )
        return external.clip_score([paths[image] for image in captions], list(captions.values()), model, device)

    computes: dict[str, Callable[[], float]] = {}
    if options.meteor:
        computes["METEOR"] = lambda: external.meteor(references, words)
    if options.spice:
        computes["SPICE"] = lambda: external.spice(references, words)
    if options.clip_score is not None:
        computes["CLIPScore"] = partial(clip_score, options.clip_score)
    for name, compute in computes.items():
        try:
            scores[name] = 100 * compute()
        except UserError as reason:
            print(f"{name} is skipped: {reason}", file=sys.stderr)
    if "CLIPScore" in scores:
        scores["signature"] += f" | CLIPScore:{options.clip_score}"


def _write_per_image(path: Path, captions: Mapping[ID, str], scores: Sequence[Mapping[str, float]]) -> None:
    """Write a row per image: id, caption, scores."""
    rows = [{"image_id": i, "caption": captions[i], **each} for i, each in zip(captions, scores, strict=True)]
    if path.suffix == ".json":
        write_json(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
