"""Scores of captions that are plain strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from captioner.errors import UserError, counted
from captioner.metrics.scores import score_tokens
from captioner.metrics.tokenizers import TOKENIZERS, tokenize_references

SHOWN = 3  # ids in a message


def score(
    captions: Sequence[str] | Mapping[Any, str],
    references: Sequence[Sequence[str]] | Mapping[Any, Sequence[str]],
    tokenizer: Literal["ptb", "words", "char", "none"] = "ptb",
) -> dict[str, Any]:
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr and more of captions, by name: see :func:`captioner.metrics.score_tokens`.

    The numbers are coco-caption's times 100, as in papers. CIDEr's weights of the words are those of `references`: of
    one image alone it is 0, and numbers on other images are not comparable.

    >>> scores = score(["a dog runs", "two men"], [["A dog runs.", "a brown dog"], ["Two men sit."]])
    >>> round(scores["BLEU-1"]), scores["images"]
    (82, 2)

    Args:
        captions: one for each of N images; or by id of the image, in any order.
        references: the captions that people wrote, one or more for each image; by id if `captions` are.
        tokenizer: ptb: coco-caption's; words: captioner's own; char: characters; none: split at white space.

    Raises:
        UserError: the images differ, an image has no reference, or something else than strings is given.
    """
    if tokenizer not in [*TOKENIZERS]:
        raise UserError(f"tokenizer is {tokenizer!r:.60}: expected one of {', '.join(TOKENIZERS)}")
    ids, hypotheses, written = _paired(captions, references)
    if not hypotheses:
        raise UserError("there are no captions to score: expected one for each image")
    for image, caption, refs in zip(ids, hypotheses, written, strict=True):
        if not isinstance(caption, str):
            raise UserError(_caption_is(image, caption))
        if isinstance(refs, str) or not isinstance(refs, Iterable):
            raise UserError(f"the references of image {image!r} are {_named(refs)}: expected a list of captions")
    refs_of = [list(refs) for refs in written]
    for image, refs in zip(ids, refs_of, strict=True):
        if not refs:
            raise UserError(f"image {image!r} has no reference: expected one or more")
        if wrong := [each for each in refs if not isinstance(each, str)]:
            raise UserError(f"a reference of image {image!r} is {_named(wrong[0])}: expected a string")
    words = TOKENIZERS[tokenizer](hypotheses)
    return score_tokens(tokenize_references(refs_of, tokenizer), words, tokenizer)


def _paired(captions: Any, references: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Ids, captions and references in the order of the captions; ids count from 0 where none are given."""
    kinds = {"captions": captions, "references": references}
    for name, value in kinds.items():
        if isinstance(value, (str, Set)) or not isinstance(value, Iterable):  # a set has no order
            raise UserError(f"{name} are {_named(value)}: expected a list with an entry for each image")
    if isinstance(captions, Mapping) != isinstance(references, Mapping):
        given = "captions" if isinstance(captions, Mapping) else "references"
        raise UserError(f"only the {given} are by id: expected two lists in the same order, or two dictionaries")
    if isinstance(captions, Mapping):
        for name, one, other in (("reference", captions, references), ("caption", references, captions)):
            if lacking := [repr(image) for image in one if image not in other]:
                some = ", ".join(lacking[:SHOWN]) + (" …" if len(lacking) > SHOWN else "")
                raise UserError(
                    f"no {name} for {counted(len(lacking), 'image')} ({some}): expected both for each image"
                )
        return list(captions), list(captions.values()), [references[image] for image in captions]
    hypotheses, written = list(captions), list(references)
    if len(hypotheses) != len(written):
        sizes = f"{counted(len(hypotheses), 'caption')} and references of {counted(len(written), 'image')}"
        raise UserError(f"there are {sizes}: expected one caption for each image")
    return list(range(len(hypotheses))), hypotheses, written


def _caption_is(image: Any, caption: Any) -> str:
    line = f"the caption of image {image!r} is {_named(caption)}: expected a string"
    return f"{line}; captions come first, then references" if isinstance(caption, (list, tuple)) else line


def _named(value: Any) -> str:
    return f"a {type(value).__name__} ({value!r:.40})"
