"""The words of a caption when its image is mirrored: left and right change places."""

from __future__ import annotations

import re
from collections.abc import Sequence

OTHER = {"left": "right", "right": "left", "lefty": "righty", "righty": "lefty"}
# left, left-hand, left-handed, leftmost, lefthand, leftward(s), bottom-left, left's
_SIDE = re.compile(r"(?:^|(?<=-))(left|right|lefty|righty)(?=$|-|['’]|most|hand|ward|side)")

# A side is named after the words of `before`, or before those of `after`, whatever else is said.
_WORDS = {
    "before": "the his her its their your my far on to from upper lower top bottom front rear back",
    "after": "of side sides hand arm arms foot leg legs eye ear shoulder paw knee corner edge half turn",
    # Whoever does this does it to a side, unless it is "looking right at the camera".
    "towards": "turn turns turned turning look looks looked looking face faces faced facing lean leans leaning "
    "head heads headed heading point points pointed pointing and or",
    # "The man left the house", "right next to": no side before these words, or after those.
    "left …": "the a an his her its their him it them behind over in on out alone for by at with after",
    "right …": "next in behind before after above below beneath beside near at up now away there here angle angles by "
    "under on through out off over outside into down along past",
    "… left": "has have had having is are was were be been being",
    "… right": "all alright",
}
WORDS = {kind: frozenset(words.split()) for kind, words in _WORDS.items()}


def flip_caption(words: Sequence[str]) -> list[str] | None:
    """As many words, true of the mirrored image; None where it is not clear whether a "left" or "right" is a side.

    A side is told by its neighbours ("on the left", "left of", "his right arm", "turning left"), and so is what is
    none ("has left the house", "right next to", "all right"); compounds (left-hand, right-handed, leftmost) are sides.
    A handful of words is no parser: "the man to the left" is a side and "the right moment" is taken for one.
    What else mirroring falsifies is not seen: writing that a caption quotes, clockwise, Britain's side of the road.

    Args:
        words: lower-cased, as from :func:`captioner.data.vocabulary.tokenize`.
    """
    found = []
    for i, word in enumerate(words):
        if word in ("left", "right"):
            side = _is_side(word, words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else "")
            if side is None:
                return None
            found.append(OTHER[word] if side else word)
        else:
            found.append(_SIDE.sub(lambda match: OTHER[match[1]], word))
    return found


def _is_side(word: str, before: str, after: str) -> bool | None:
    if before in WORDS["before"] or after in WORDS["after"]:
        return True
    towards, none = before in WORDS["towards"], after in WORDS[f"{word} …"] or before in WORDS[f"… {word}"]
    return None if towards == none else towards
