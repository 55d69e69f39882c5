"""The tables of docs/search.md: the scores of each search, and its processor time as a multiple of greedy's.

    python benchmarks/search_table.py --annotations captions_val.json --images images/val

The images are encoded once; the times are of decoding alone, 100 images at a time, the ways to search taking turns.
Further --checkpoint make an ensemble with the first.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ratios import rounds_argument, take_turns

from captioner import metrics
from captioner.config import SearchConfig
from captioner.data.annotations import read_examples
from captioner.data.dataset import read_images
from captioner.models.base import CaptionModel
from captioner.models.captioner import load

BATCH = 100
WAYS: list[dict[str, Any]] = [
    {"beam": 1},
    {"beam": 3},
    {},
    {"beam": 10},
    {"length_norm": "average"},
    {"length_penalty": 0.0},
    {"no_repeat_word": True},
    {"no_repeat_ngram": 3},
    {"no_repeat_ngram": 2},
    {"no_bad_ending": True},
    {"min_length": 8},
    {"must": "dog"},
    {"must": "man standing"},
    {"must_not": "dog man"},
    {"prefix": "a photo of"},
    {"groups": 5},
    {"beam": 10, "groups": 2},
    {"sample": True},
    {"sample": True, "temperature": 0.5},
    {"sample": True, "top_k": 10},
    {"sample": True, "top_p": 0.8},
    {"sample": True, "min_p": 0.1},
]
SETS: list[dict[str, Any]] = [
    {"n_best": 5},
    {"n_best": 5, "beam": 10, "groups": 5, "diversity": 0.2},
    {"n_best": 5, "groups": 5, "diversity": 0.5},
    {"n_best": 5, "groups": 5, "diversity": 1.0},
    {"n_best": 5, "beam": 10, "groups": 5, "diversity": 1.0},
    {"n_best": 5, "sample": True, "temperature": 0.5},
    {"n_best": 5, "sample": True},
]


def name_of(way: dict[str, Any]) -> str:
    """The options as typed on the command line."""
    typed = (
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
        for name, value in way.items()
    )
    return f"`{' '.join(typed)}`" if way else "default: `--beam 5`"


def main() -> None:
    """Print both tables."""
    parser = rounds_argument(__doc__, 1)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--checkpoint", action="append", help="without it, the shipped one")
    options = parser.parse_args()
    examples, _ = read_examples(options.annotations, options.images)
    references = [[metrics.ptb_tokenize(caption) for caption in example.captions] for example in examples]
    files = options.checkpoint or [None]
    model = load(files[0], "cpu")
    paths = [example.path for example in examples]
    with torch.inference_mode():
        encoded = [model.features(images) for images, _ in read_images(paths, model.image_size, 32, 0)]
        features = torch.cat(encoded).split(BATCH)

    def captions(model: CaptionModel, config: SearchConfig) -> list[list[Any]]:
        return [found for batch in features for found in model.search(batch, config)]

    models = [(name_of(way), model, SearchConfig(**way)) for way in WAYS]
    for file in files[1:]:
        models.append((f"default, another model: {Path(file).parent.name}", load(file, "cpu"), SearchConfig()))
    if len(files) > 1:
        models.append((f"default, ensemble of {len(files)}", load(files, "cpu"), SearchConfig()))
    said: dict[str, list[list[Any]]] = {}

    def search(name: str, m: CaptionModel, config: SearchConfig) -> None:
        said[name] = captions(m, config)

    times = take_turns({each[0]: partial(search, *each) for each in models}, options.rounds)
    greedy = np.array(times[models[0][0]])[:, 1]
    print("| options | BLEU-4 | ROUGE-L | CIDEr | distinct | words | time |\n|---|---|---|---|---|---|---|")
    for name, *_ in models:
        words = [metrics.ptb_tokenize(found[0].text) for found in said[name]]
        scores = metrics.score_tokens(references, words, "ptb")
        time = np.median(np.array(times[name])[:, 1] / greedy)
        print(
            f"| {name} | {scores['BLEU-4']:.2f} | {scores['ROUGE-L']:.2f} | {scores['CIDEr']:.2f} | "
            f"{len(set(map(tuple, words)))} | {scores['mean_length']:.1f} | {time:.1f} × |",
            flush=True,
        )
    print("\n| options | CIDEr of the first | of the best | different captions | bigrams | BLEU-4 among them |")
    print("|---|---|---|---|---|---|")
    for way in SETS:
        found = [[metrics.ptb_tokenize(one.text) for one in each] for each in captions(model, SearchConfig(**way))]
        n = way["n_best"]  # an image may have fewer
        each = np.array([metrics.cider_d(references, [some[k % len(some)] for some in found]) for k in range(n)])
        kinds = np.mean([len(set(map(tuple, some))) for some in found])
        bigrams = np.mean([metrics.distinct_n(some, 2) for some in found])
        alike = np.mean([metrics.self_bleu(some) for some in found])
        print(
            f"| {name_of(way)} | {100 * each[0].mean():.2f} | {100 * each.max(0).mean():.2f} | {kinds:.2f} of {n} | "
            f"{100 * bigrams:.1f} % | {100 * alike:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
