"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap's, and everything `captioner score` computes on a set like COCO's.

The ratio is of 5,000 images with 5 references each, in words, so that neither side tokenises. Then, in a separate
process, 40,504 images (COCO val2014) with 5 references each are scored with all of captioner.metrics.score_tokens and
with bootstrap intervals: seconds, and peak memory before and after.

The captions of an image are one random sentence in which every other word or so was replaced; words follow Zipf's law.
"""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys

import numpy as np
from ratios import caption_lengths, rounds_argument, seconds, take_turns, verdict

from captioner.metrics.scores import NAMES, per_image, score_tokens
from captioner.metrics.significance import intervals

VOCABULARY, FEW, MANY, REFERENCES = 9_487, 5_000, 40_504, 5
FASTER = 5.0


def generated(images: int) -> tuple[list[list[list[str]]], list[list[str]]]:
    """References and hypotheses."""
    random = np.random.default_rng(0)
    names = np.array([f"w{i}" for i in range(VOCABULARY)], dtype=object)
    zipf = 1 / np.arange(1, VOCABULARY + 1)
    zipf /= zipf.sum()
    references, hypotheses = [], []
    for _ in range(images):
        ours, *refs = caption_lengths(REFERENCES + 1, random)
        sentence = names[random.choice(VOCABULARY, 25, p=zipf)]
        others = names[random.choice(VOCABULARY, (REFERENCES + 1, 25), p=zipf)]
        captions = np.where(random.random(others.shape) < 0.4, others, sentence)
        hypotheses.append(captions[0, :ours].tolist())
        references.append([words[:length].tolist() for words, length in zip(captions[1:], refs, strict=True)])
    return references, hypotheses


def peak() -> int:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def whole() -> None:
    """Everything on the large set."""
    references, hypotheses = generated(MANY)
    before = peak()

    def everything() -> None:
        images = per_image(references, hypotheses)
        score_tokens(references, hypotheses, "generated", images=images)
        intervals(images)

    took = seconds(everything)
    print(f"all scores and intervals of {MANY} images with {REFERENCES} references each:", end=" ")
    print(f"{took[0]:.1f} s, {took[1]:.1f} s of processor time")
    print(f"peak memory {before} MB before, with the captions, and {peak()} MB after", flush=True)


def main() -> bool:
    """Print the ratio; whether it is within its limit."""
    parser = rounds_argument(__doc__, 3)
    parser.add_argument("--whole", action="store_true", help="only the large set, in this process")
    arguments = parser.parse_args()
    if arguments.whole:
        whole()
        return True
    if importlib.util.find_spec("pycocoevalcap") is None:
        print("pycocoevalcap, the other side of the ratio, is not installed: pip install -e '.[test]'")
        sys.exit(2)
    # First, while this process is small: a process inherits the peak of its parent.
    subprocess.run([sys.executable, __file__, "--whole"], check=True)

    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references, hypotheses = generated(FEW)
    refs = {i: [" ".join(words) for words in captions] for i, captions in enumerate(references)}
    hyps = {i: [" ".join(words)] for i, words in enumerate(hypotheses)}

    def theirs() -> list[float]:
        bleu = Bleu(4).compute_score(refs, hyps, verbose=0)[0]
        return [*bleu, Rouge().compute_score(refs, hyps)[0], Cider().compute_score(refs, hyps)[0]]

    expected = 100 * np.array(theirs())
    found = per_image(references, hypotheses).corpus_scores()
    print(", ".join(f"{name} {value:.2f}" for name, value in zip(NAMES, found, strict=True)))
    print(f"largest relative difference from pycocoevalcap: {abs(found / expected - 1).max():.1g}")
    times = take_turns({"theirs": theirs, "ours": lambda: per_image(references, hypotheses)}, arguments.rounds)
    return verdict("pycocoevalcap / ours, time", times["theirs"], times["ours"], ">=", FASTER)


if __name__ == "__main__":
    sys.exit(not main())
