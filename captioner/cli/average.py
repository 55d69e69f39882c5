"""Average the weights of several checkpoints of one architecture into one model.

Example: captioner average runs/mine/kept/*.ckpt --output average.safetensors

With --annotations the checkpoints are selected greedily: from the best to the worst by CIDEr-D, each is added unless
the score of the average falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="two or more files or folders of runs")
    parser.add_argument("--output", type=str, required=True, help="write the average to this .safetensors file")
    about = "captions to select the checkpoints by, in any format of docs/data.md"
    parser.add_argument("--annotations", type=str, help=about)
    parser.add_argument("--images", type=str, help="folder that the file names are relative to, if needed")
    parser.add_argument("--beam", type=int, default=1, help="beam width when selecting")


def run(options: Any) -> None:
    """Average; see the module's docstring."""
    from captioner.errors import UserError
    from captioner.models.captioner import check_fits
    from captioner.models.checkpoint import read_checkpoint, save_slim
    from captioner.models.weight_averaging import average, check_compatible, greedy_selection

    names = options.checkpoints
    if len(names) < 2:
        raise UserError("name two checkpoints or more to average")
    if Path(options.output).suffix != ".safetensors":
        raise UserError(f"--output is {options.output}: expected a .safetensors file")
    if options.annotations is None and options.images is not None:
        raise UserError("--images (folder) needs --annotations, whose captions select the checkpoints")
    headers, states = zip(*map(read_checkpoint, names), strict=True)
    for name, header, state in zip(names, headers, states, strict=True):
        if header.get("kind") != "language_model":
            check_fits(name, header, state)
    check_compatible(headers, names)
    chosen = list(range(len(names)))
    if options.annotations is not None:
        chosen, reached = greedy_selection(len(names), _scorer(options, states))
        print(f"CIDEr {reached:.2f} with {len(chosen)} of {len(names)}: {', '.join(names[i] for i in chosen)}")
    save_slim(options.output, headers[0], average([states[i] for i in chosen]))
    print(f"{options.output}: the average of {len(chosen)} checkpoints")


def _scorer(options: Any, states: Any) -> Callable[[list[int]], float]:
    """A function: members → CIDEr-D (× 100) of their average on the images in the options."""
    import torch

    from captioner import metrics
    from captioner.config import IMAGE_BATCH_SIZE, SearchConfig
    from captioner.data.annotations import read_examples
    from captioner.data.dataset import read_images
    from captioner.data.samplers import unreadable_image
    from captioner.devices import best_device, choose_workers
    from captioner.models.captioner import Captioner
    from captioner.models.weight_averaging import average

    device, search = best_device(), SearchConfig(beam=options.beam)
    model = Captioner.load(options.checkpoints[0], device)
    examples, _ = read_examples(options.annotations, options.images, "val", albums=model.frames > 0)
    references = [[metrics.ptb_tokenize(caption) for caption in example.captions] for example in examples]
    paths, workers = [example.path for example in examples], choose_workers(-1, device)

    def encode() -> Iterator[torch.Tensor]:
        for images, errors in read_images(paths, model.image_size, IMAGE_BATCH_SIZE, workers, model.frames):
            if bad := next(filter(None, errors), None):
                raise unreadable_image(bad)
            yield model.features(images.to(device))

    # All members share a frozen encoder, whose features are computed once.
    features = list(encode()) if model.config.trainable_layers == 0 else None

    @torch.inference_mode()
    def score(members: list[int]) -> float:
        model.load_weights(average([states[i] for i in members]))
        found = [captions for batch in features or encode() for captions in model.search(batch, search)]
        words = [metrics.ptb_tokenize(captions[0].text if captions else "") for captions in found]
        return 100 * float(metrics.cider_d(references, words).mean())

    return score
