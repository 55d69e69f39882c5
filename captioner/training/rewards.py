"""CIDEr-D and BLEU-4 of sampled captions, over word ids: the rewards of self-critical training."""

from collections.abc import Sequence

import numpy as np

from captioner.metrics.scores import DocumentFrequencies, bleu_from_counts, per_image


class Rewards:
    """Rewards of sampled captions, compared with the references of their training images.

    The reward is CIDEr-D (0 to 10; see :func:`captioner.metrics.cider_d`) plus `bleu_weight` times the BLEU-4 of the
    caption (0 to 1). END is the last word of every reference and of the captions that ended, so that a caption that
    stops where no reference does ("a man riding a") loses reward.

    Args:
        references: ids of the captions of each of the I training images, without END. The document frequencies are
            those of these images.
        end: id of END.
        bleu_weight: 0 for CIDEr-D alone.
        max_length: references are cut to this many words, without END then.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        end: int,
        bleu_weight: float = 0.0,
        max_length: int | None = None,
    ) -> None:
        self.bleu_weight = bleu_weight
        self.references = [[[*words, end][:max_length] for words in refs] for refs in references]
        self.frequencies = DocumentFrequencies(self.references)

    def __call__(self, images: np.ndarray, words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(N,) rewards.

        Args:
            images: (N,) the training image of each caption.
            words: (N, M) ids, END after the captions that ended.
            lengths: (N,) words of each caption, END among them.
        """
        hypotheses = [row[:length].tolist() for row, length in zip(words, lengths, strict=True)]
        scores = per_image([self.references[image] for image in images], hypotheses, self.frequencies)
        return scores.cider + self.bleu_weight * bleu_from_counts(scores.counts)[:, -1]
