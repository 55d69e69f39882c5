"""The words of a caption when its image is flipped horizontally: left and right change places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from captioner.data.vocabulary import tokenize

OPPOSITE = {"left": "right", "right": "left", "lefty": "righty", "righty": "lefty"}
# A side within a word: left-hand, left-handed, leftmost, lefthand, leftward(s), bottom-left, left's
_SIDE_IN_WORD = re.compile(r"(?:^|(?<=-))(left|right|lefty|righty)(?=$|-|['’]|most|hand|ward|side)")

# The word before, or the word after, that makes "left" or "right" a side in any other context.
BEFORE_SIDE = str.split("the his her its their your my far on to from upper lower top bottom front rear back")
AFTER_SIDE = str.split("of side sides hand arm arms foot leg legs eye ear shoulder paw knee corner edge half turn")
# The word before that makes it a direction, unless the word after contradicts: "looking right at the camera".
TOWARDS = str.split(
    "turn turns turned turning look looks looked looking face faces faced facing lean leans leaning "
    "head heads headed heading point points pointed pointing and or"
)
# Neighbours with which it is not a side: "the man left the house", "has left", "right next to", "all right".
NOT_SIDE_AFTER = {
    "left": str.split("the a an his her its their him it them behind over in on out alone for by at with after"),
    "right": str.split(
        "next in behind before after above below beneath beside near at up now away there here angle angles by "
        "under on through out off over outside into down along past"
    ),
}
NOT_SIDE_BEFORE = {
    "left": str.split("has have had having is are was were be been being"),
    "right": str.split("all alright"),
}


ENGLISH = frozenset(str.split("a an the in on of with is are and at"))  # most English captions have one of these


def are_english(captions: Iterable[str]) -> bool:
    """Whether captions are English, by the first thousand."""
    texts = [set(tokenize(caption)) for caption in islice(captions, 1000)]
    return 2 * sum(not ENGLISH.isdisjoint(words) for words in texts) >= len(texts)


def flip_caption(words: Sequence[str], pairs: Mapping[str, str] | None = None) -> list[str] | None:
    """The lower-cased words for the flipped image; None if it is unclear whether a "left" or "right" is a side.

    With `pairs` of words, such as links and rechts, each is replaced by the other wherever it is, and nothing else.

    It depends on the words before and after; compounds such as left-hand and leftmost are always sides. These
    rules do not parse: "the right moment" counts as a side. Other things that flipping makes false are not detected:
    quoted writing, clockwise, the side of the road that Britain drives on.

    >>> flip_caption("he left the house on the left".split())
    ['he', 'left', 'the', 'house', 'on', 'the', 'right']
    >>> flip_caption("a man looking right at the camera".split())  # None: in that direction, or straight at it?
    """
    if pairs:
        return [pairs.get(word, word) for word in words]
    flipped = []
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        side = word not in ("left", "right") or _is_side(word, before, after)
        if side is None:
            return None
        flipped.append(_SIDE_IN_WORD.sub(lambda match: OPPOSITE[match[1]], word) if side else word)
    return flipped


def _is_side(word: str, before: str, after: str) -> bool | None:
    """Whether `word` ("left" or "right") is a side; None if the rules contradict each other or none applies.

    "turn left" is a side, "left behind" is not; "look right at me" is both, "a left thing" neither: None.
    """
    if before in BEFORE_SIDE or after in AFTER_SIDE:
        return True
    side, not_side = before in TOWARDS, after in NOT_SIDE_AFTER[word] or before in NOT_SIDE_BEFORE[word]
    return None if side == not_side else side
