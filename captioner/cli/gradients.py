"""Measure and draw gradients through time in trained models; captioner plot draws gradient norms during training.

Example: captioner gradients --checkpoint runs/rnn/best.ckpt --checkpoint runs/lstm/best.ckpt
--annotations captions_val.json --images val --weights trained untrained --output gradients.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from captioner.cli.options import add_split_arguments
from captioner.config import DataConfig
from captioner.errors import UserError

Curve = dict[str, Any]
PARTS = ("h", "c", "h1", "c1", "h2", "c2")  # of a state, the last four of updown's two LSTMs

CHECKPOINTS = "checkpoint"
READS = "annotations images list"
WRITES = "output json"


def configure(parser: Any) -> None:
    """Declare the options."""
    cache = DataConfig.feature_cache
    about = "file of a model or folder of a run (default: the shipped model); repeat it for several models"
    parser.add_argument("--checkpoint", action="append", type=str, help=about)
    parser.add_argument("--annotations", type=str, required=True, help="captions, in any format of docs/data.md")
    add_split_arguments(parser)
    parser.add_argument("--feature_cache", type=str, default=cache, help="folder of the features, as for train")
    parser.add_argument("--count", type=int, default=200, help="number of captions measured, the longest ones")
    kinds = Literal["trained", "untrained"]
    about = "trained weights, weights as at the start of training, or both"
    parser.add_argument("--weights", nargs="+", type=kinds, default=["trained"], help=about)
    about = "seed of the untrained weights, as train.seed of a run"
    parser.add_argument("--seed", type=int, default=0, help=about)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0], help="multiply every W_hh by each of these")
    parser.add_argument("--output", type=str, help="draw the curves to this PNG, SVG or PDF")
    parser.add_argument("--json", type=str, help="also write the numbers to this JSON file")


def run(options: Any) -> None:
    """Measure, print, write and draw; see the module's docstring."""
    from captioner.files import write_json
    from captioner.training.curves import check_figure, import_pyplot, save_figure

    if options.count < 1:
        raise UserError(f"--count is {options.count}: expected 1 or more")
    if not all(0 < scale < math.inf for scale in options.scale):
        raise UserError(f"--scale is {' '.join(map(str, options.scale))}: expected numbers above 0")
    if options.output is not None:
        check_figure("--output", Path(options.output))
    curves: list[Curve] = []
    for curve in _measure(options):
        if not curves:
            print("| model | W_hh × | largest singular value | at distance 1 | farthest | factor a step |")
            print("|---|---|---|---|---|---|")
        curves.append(curve)
        for part in _parts(curve):
            first, last, steps = curve[part][0], curve[part][-1], len(curve[part])
            factor = (last / first) ** (1 / max(1, steps - 1))
            print(
                f"| {curve['model']}, {curve['weights']}: {part} | {curve['scale']:g} | "
                f"{curve['largest_singular_value']:.2f} | {first:.2g} | {last:.2g} at {steps} | {factor:.3f} |",
                flush=True,
            )
    if options.json is not None:
        write_json(Path(options.json), curves)
    if options.output is not None:
        save_figure(_figure(import_pyplot("--output"), curves), Path(options.output))


def _parts(curve: Curve) -> list[str]:
    return [part for part in PARTS if part in curve]


def _measure(options: Any) -> Iterator[Curve]:
    """Gradient norms for each model, kind of weights and scale."""
    import torch

    from captioner.models.captioner import Captioner
    from captioner.models.checkpoint import resolve_checkpoint
    from captioner.training.gradients import gradient_norms, largest_singular_value, recurrent_matrices

    for given in options.checkpoint or [None]:
        file = resolve_checkpoint(given)
        trained = Captioner.load(file)
        name = file.resolve().parent.name if file.stem in ("best", "last", "captioner") else file.stem  # of the run
        name = "the shipped model" if given is None else name
        features, words, lengths = _longest(trained, options)
        models = {"trained": trained}
        if "untrained" in options.weights:
            torch.manual_seed(options.seed)
            models["untrained"] = Captioner(trained.config, trained.vocabulary, None, trained.encoder_digest).eval()
        for kind in options.weights:
            model = models[kind]
            matrices = recurrent_matrices(model.decoder).values()
            originals = [weight.detach().clone() for weight in matrices]
            for scale in options.scale:
                with torch.no_grad():
                    for weight, original in zip(matrices, originals, strict=True):
                        weight.copy_(scale * original)
                norms = gradient_norms(*model.start_search(features), words, lengths)
                means = [norm.clamp(min=1e-30).log().mean(dim=0).exp().tolist() for norm in norms]
                yield {
                    "model": name,
                    "weights": kind,
                    "cell": model.config.cell,
                    "layers": model.config.layers,
                    "scale": scale,
                    "largest_singular_value": largest_singular_value(model.decoder),
                    "captions": len(words),
                    # Geometric means at the distances 1, 2, …
                    **dict(zip(PARTS[2:] if len(means) == 4 else PARTS, means, strict=False)),
                }


def _longest(model: Any, options: Any) -> tuple[Any, Any, Any]:
    """Features (N, F), words (N, T + 1), lengths (N,) of the longest captions whose last word is in the vocabulary."""
    import numpy as np
    import torch

    from captioner.data.vocabulary import PAD, START, UNK, tokenize
    from captioner.devices import best_device
    from captioner.training.split import DataSplit

    if model.config.trainable_layers:
        raise UserError("gradients needs a frozen encoder, and this model has a trained one: name another --checkpoint")
    data = DataConfig(
        val=options.annotations,
        val_images=options.images,
        val_split=options.split,
        val_list=options.list,
        columns=options.columns,
        feature_cache=options.feature_cache,
    )
    split: Any = DataSplit("val", data, model.config, device=best_device())
    pairs = [
        (row, ids)
        for row, example in zip(split.rows.tolist(), split.examples, strict=True)
        for ids in (model.vocabulary.encode(tokenize(caption)) for caption in example.captions)
        if 1 <= len(ids) <= data.max_length and ids[-1] != UNK
    ]
    pairs = sorted(pairs, key=lambda pair: -len(pair[1]))[: options.count]
    if not pairs:
        raise UserError(f"{options.annotations} has no caption whose last word is in the vocabulary")
    rows = [torch.tensor([START, *ids]) for _, ids in pairs]
    words = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    features = split.read(np.array([row for row, _ in pairs]))
    return features, words, torch.tensor([len(ids) for _, ids in pairs])


def _figure(plt: Any, curves: list[Curve]) -> Any:
    from captioner.training.curves import literal

    figure, axis = plt.subplots(figsize=(8.5, 4.0), layout="constrained")
    colours: dict[Any, str] = {}  # one for each model and scale, the same for all weights and parts of the state
    for curve in curves:
        colour = colours.setdefault((curve["model"], curve["scale"]), f"C{len(colours)}")
        scaled = "" if curve["scale"] == 1 else f", W_hh × {curve['scale']:g}"
        for part in _parts(curve):
            relative = [norm / curve[part][0] for norm in curve[part]]
            style = f"{colour}{'.' if part[0] == 'h' else 'x'}{'-' if curve['weights'] == 'trained' else '--'}"
            label = literal(f"{curve['model']}, {curve['weights']}{scaled}: {part}")
            axis.plot(range(1, len(relative) + 1), relative, style, ms=5, lw=1, label=label)
    axis.axhline(1, color="grey", lw=0.5)
    axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axis.set(yscale="log", xlabel="words between the state and the loss", ylabel="gradient norm, relative to one word")
    figure.legend(fontsize=8, loc="outside right upper")
    return figure
