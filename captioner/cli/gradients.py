"""Measure and draw gradients through time in trained models; captioner plot draws those along a training.

Example: captioner gradients --checkpoint runs/rnn/best.ckpt --checkpoint runs/lstm/best.ckpt
--annotations captions_val.json --images val --weights trained untrained --output gradients.png
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from captioner.config import DataConfig
from captioner.errors import UserError

Curve = dict[str, Any]


def configure(parser: Any) -> None:
    """Declare the options."""
    cache = DataConfig.feature_cache
    parser.add_argument(
        "--checkpoint", action="append", type=str, help="a model; several times: several; none: the shipped"
    )
    parser.add_argument("--annotations", type=str, help="COCO captions JSON")
    parser.add_argument("--images", type=str, help="folder with its images")
    parser.add_argument("--feature_cache", type=str, default=cache, help="folder of the features, as for train")
    parser.add_argument("--count", type=int, default=200, help="how many of the longest captions are measured")
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=("trained", "untrained"),
        default=["trained"],
        help="the model's, or new ones as at the beginning of a training, or both",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the untrained weights: that of train makes the same")
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0], help="multiply every W_hh by each of these")
    parser.add_argument("--output", type=str, help="draw the curves to this PNG, SVG or PDF")
    parser.add_argument("--json", type=str, help="also write the numbers to this JSON file")


def run(options: Any) -> None:
    """Measure, print, write and draw; see the module's docstring."""
    from captioner.files import write_json
    from captioner.training.curves import pyplot

    if options.output is not None:
        pyplot("--output")  # missing, it is missed before the work
    curves = _measured(options)
    if options.json is not None:
        write_json(Path(options.json), curves)
    if options.output is not None:
        _draw(curves, Path(options.output))


def _measured(options: Any) -> list[Curve]:
    import torch

    from captioner.models.captioner import Captioner
    from captioner.models.checkpoint import SHIPPED, resolve_checkpoint
    from captioner.training.gradients import largest_singular_value, recurrent_matrices, through_time

    if options.annotations is None or options.images is None:
        raise UserError("--annotations (captions JSON) and --images (folder) are both needed")
    if options.count < 1:
        raise UserError(f"--count is {options.count}: expected 1 or more")
    if not all(0 < scale < math.inf for scale in options.scale):
        raise UserError(f"--scale is {options.scale}: expected numbers above 0")
    curves: list[Curve] = []
    print("| model | W_hh × | largest singular value | at distance 1 | farthest | factor a step |")
    print("|---|---|---|---|---|---|")
    for file in options.checkpoint or [str(SHIPPED)]:
        trained = Captioner.load(file)
        features, words, lengths = _longest(trained, options)
        models = {"trained": trained}
        if "untrained" in options.weights:
            torch.manual_seed(options.seed)
            models["untrained"] = Captioner(trained.config, trained.vocabulary, None, trained.encoder_digest).eval()
        for kind in options.weights:
            model = models[kind]
            weights = recurrent_matrices(model.decoder).values()
            before = [weight.detach().clone() for weight in weights]
            for scale in options.scale:
                with torch.no_grad():
                    for weight, made in zip(weights, before, strict=True):
                        weight.copy_(scale * made)
                norms = through_time(*model.start_search(features), words, lengths)
                means = [norm.clamp(min=1e-30).log().mean(dim=0).exp().tolist() for norm in norms]
                curve = {
                    "model": _name(resolve_checkpoint(file)),
                    "weights": kind,
                    "cell": model.config.cell,
                    "layers": model.config.layers,
                    "scale": scale,
                    "largest_singular_value": largest_singular_value(model.decoder),
                    "captions": len(words),
                    **dict(zip("hc", means, strict=False)),  # geometric means at the distances 1, 2, …
                }
                curves.append(curve)
                for part, mean in zip("hc", means, strict=False):
                    factor = (mean[-1] / mean[0]) ** (1 / max(1, len(mean) - 1))
                    print(
                        f"| {curve['model']}, {kind}: {part} | {scale:g} | {curve['largest_singular_value']:.2f} | "
                        f"{mean[0]:.2g} | {mean[-1]:.2g} at {len(mean)} | {factor:.3f} |",
                        flush=True,
                    )
    return curves


def _longest(model: Any, options: Any) -> tuple[Any, Any, Any]:
    """Features (N, F), words (N, T + 1) and lengths (N,) of the longest captions whose last word the model knows."""
    import torch

    from captioner.data.vocabulary import PAD, START, UNK, tokenize
    from captioner.training.datamodule import Split

    if model.config.trainable_layers:
        raise UserError("gradients reads the features of a frozen encoder: this model has trained its own")
    data = DataConfig(val=options.annotations, val_images=options.images, feature_cache=options.feature_cache)
    split = Split("val", data, model.config)
    pairs = [
        (row, ids)
        for row, example in zip(split.rows.tolist(), split.examples, strict=True)  # type: ignore[union-attr]
        for ids in (model.vocabulary.encode(tokenize(caption)) for caption in example.captions)
        if 1 <= len(ids) <= data.max_length and ids[-1] != UNK
    ]
    pairs = sorted(pairs, key=lambda pair: -len(pair[1]))[: options.count]
    if not pairs:
        raise UserError(f"{options.annotations} has no caption whose last word the model knows")
    words = torch.full((len(pairs), len(pairs[0][1]) + 1), PAD)
    words[:, 0] = START
    for i, (_, ids) in enumerate(pairs):
        words[i, 1 : len(ids) + 1] = torch.tensor(ids)
    features = torch.stack([torch.as_tensor(split.table[row]) for row, _ in pairs])  # type: ignore[index]
    return features, words, torch.tensor([len(ids) for _, ids in pairs])


def _name(file: Path) -> str:
    """The folder of a run says more than best.ckpt."""
    return file.resolve().parent.name if file.stem in ("best", "last", "captioner") else file.stem


def _draw(curves: list[Curve], target: Path) -> None:
    from captioner.training.curves import pyplot, save

    plt = pyplot("--output")
    figure, axis = plt.subplots(figsize=(8.5, 4.0), layout="constrained")
    colours: dict[Any, str] = {}  # one for each model and scale; trained and untrained, h and c share it
    for curve in curves:
        colour = colours.setdefault((curve["model"], curve["scale"]), f"C{len(colours)}")
        scaled = "" if curve["scale"] == 1 else f", W_hh × {curve['scale']:g}"
        for part in "hc":
            if part in curve:
                relative = [norm / curve[part][0] for norm in curve[part]]
                style = f"{colour}{'.' if part == 'h' else 'x'}{'-' if curve['weights'] == 'trained' else '--'}"
                label = f"{curve['model']}, {curve['weights']}{scaled}: {part}"
                axis.plot(range(1, len(relative) + 1), relative, style, ms=5, lw=1, label=label)
    axis.axhline(1, color="grey", lw=0.5)
    axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axis.set(yscale="log", xlabel="words between the state and the loss", ylabel="gradient norm, relative to one word")
    figure.legend(fontsize=8, loc="outside right upper")
    save(figure, target)
