"""Average the weights of several checkpoints of one architecture into one model.

Example: captioner average runs/mine/kept/*.ckpt --output average.safetensors

With --annotations the checkpoints are selected greedily: from the best to the worst by CIDEr-D, each is added unless
the score of the average falls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from captioner.cli.options import (
    add_device_argument,
    add_skip_argument,
    add_split_arguments,
    read_split,
    resolve_device,
)

CHECKPOINTS = "checkpoints"
READS = "annotations images list"
WRITES = "output"
NEEDS = {"images split list columns encoding skip_bad_images beam device": "--annotations"}


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="two or more files or folders of runs")
    parser.add_argument("--output", type=str, required=True, help="write the average to this .safetensors file")
    about = "captions to select the checkpoints by, in any format of docs/data.md"
    parser.add_argument("--annotations", type=str, help=about)
    add_split_arguments(parser)
    add_skip_argument(parser)
    parser.add_argument("--beam", type=int, default=1, help="beam width when selecting")
    add_device_argument(parser)


def run(options: Any) -> None:
    """Average; see the module's docstring."""
    from captioner.errors import UserError, counted

    names = options.checkpoints
    if len(names) < 2:
        raise UserError("name two checkpoints or more to average")
    if Path(options.output).suffix != ".safetensors":
        raise UserError(f"--output is {options.output}: expected a .safetensors file")
    from captioner.models.captioner import fitting_weights, save_slim
    from captioner.models.checkpoint import read_checkpoint
    from captioner.models.weight_averaging import average, check_compatible, greedy_selection

    headers, states = map(list, zip(*map(read_checkpoint, names), strict=True))
    for i, header in enumerate(headers):
        if header.get("kind") != "language_model":
            states[i] = fitting_weights(names[i], header, states[i])
    check_compatible(headers, names)
    chosen = list(range(len(names)))
    if options.annotations is not None:
        skipped: dict[str, None] = {}
        chosen, reached = greedy_selection(len(names), _scorer(options, states, skipped))
        if skipped:
            print(f"{counted(len(skipped), 'image')} skipped, e.g. {next(iter(skipped))}", file=sys.stderr)
        print(f"CIDEr {reached:.2f} with {len(chosen)} of {len(names)}: {', '.join(names[i] for i in chosen)}")
    header = {name: value for name, value in headers[0].items() if name != "calibration"}  # which is of other weights
    save_slim(options.output, header, average([states[i] for i in chosen]))
    print(f"{options.output}: the average of {counted(len(chosen), 'checkpoint')}")


def _scorer(options: Any, states: Any, skipped: dict[str, None]) -> Callable[[list[int]], float]:
    """A function: members → CIDEr-D (× 100) of their average on the images in the options.

    With --skip_bad_images a line for each image that is left out is added to `skipped`.
    """
    import torch

    from captioner import metrics
    from captioner.config import IMAGE_BATCH_SIZE, SearchConfig
    from captioner.data.dataset import read_images
    from captioner.data.samplers import unreadable_image
    from captioner.devices import choose_workers
    from captioner.errors import UserError
    from captioner.metrics.tokenizers import TOKENIZERS, tokenize_references, tokenizer_of
    from captioner.models.captioner import Captioner
    from captioner.models.weight_averaging import average

    device, search = resolve_device(options.device), SearchConfig(beam=options.beam)
    model = Captioner.load(options.checkpoints[0], device)
    examples, left_out = read_split(options, options.annotations, model.frames > 0)
    skipped.update(dict.fromkeys(left_out))
    tokenizer = tokenizer_of(model.vocabulary.level)
    references = tokenize_references([example.captions for example in examples], tokenizer)
    paths, workers = [example.path for example in examples], choose_workers(-1, device)

    def read() -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Batches of readable images, and the numbers of their examples."""
        first = 0
        for images, errors in read_images(paths, model.image_size, IMAGE_BATCH_SIZE, workers, model.frames):
            for bad in filter(None, errors):
                if not options.skip_bad_images:
                    raise unreadable_image(bad, "--skip_bad_images")
                skipped[str(bad)] = None
            if len(images):
                yield images, [first + place for place, error in enumerate(errors) if error is None]
            first += len(errors)

    def encode() -> Iterator[tuple[torch.Tensor, list[int]]]:
        return ((model.features(images.to(device)), numbers) for images, numbers in read())

    # All members share a frozen encoder, whose features are computed once.
    features = list(encode()) if model.config.trainable_layers == 0 else None

    @torch.inference_mode()
    def score(members: list[int]) -> float:
        model.load_weights(average([states[i] for i in members]))
        found: dict[int, str] = {}
        for batch, numbers in features or encode():
            for number, captions in zip(numbers, model.search(batch, search), strict=True):
                found[number] = captions[0].text if captions else ""
        if not found:
            raise UserError(f"{options.annotations} has no readable image")
        words = TOKENIZERS[tokenizer](found.values())
        return 100 * float(metrics.cider_d([references[number] for number in found], words).mean())

    return score
