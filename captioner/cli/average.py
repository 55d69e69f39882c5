"""Average the weights of several checkpoints of one architecture into one model.

Example: captioner average runs/mine/kept/*.ckpt --output soup.safetensors

With --annotations and --images the soup is greedy: from the best to the worst by CIDEr-D, a checkpoint is added unless
the score of the average falls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="two or more, of any kind")
    parser.add_argument("--output", type=str, required=True, help="write the average to this .safetensors file")
    parser.add_argument("--annotations", type=str, help="captions that choose among the checkpoints (docs/data.md)")
    parser.add_argument("--images", type=str, help="folder with their images, unless the layout says where they are")
    parser.add_argument("--beam", type=int, default=1, help="beam width of the captions that choose")


def run(options: Any) -> None:
    """Average; see the module's docstring."""
    from captioner.errors import UserError
    from captioner.models.captioner import brings_encoder, check_fits, described, read_checkpoint, save_slim
    from captioner.models.weight_averaging import average, check, greedy

    names = options.checkpoints
    if len(names) < 2:
        raise UserError("name two checkpoints or more to average")
    if Path(options.output).suffix != ".safetensors":
        raise UserError(f"--output is {options.output}: expected a .safetensors file")
    if options.annotations is None and options.images is not None:
        raise UserError("--images (folder) needs --annotations, whose captions choose, for a greedy soup")
    headers, states = zip(*(read_checkpoint(Path(name)) for name in names), strict=True)
    for name, header, state in zip(names, headers, states, strict=True):
        config, vocabulary = described(Path(name), header)
        if header.get("kind") != "language_model":
            check_fits(Path(name), state, config, vocabulary, brings_encoder(config, header))
    check(headers, names)
    kept = list(range(len(names)))
    if options.annotations is not None:
        score = _scores(options, headers[0], states)
        kept, reached = greedy(len(names), score)
        print(f"CIDEr {reached:.2f} with {len(kept)} of {len(names)}: {', '.join(names[i] for i in kept)}")
    mean = average([states[i] for i in kept])
    save_slim(options.output, headers[0], mean)
    print(f"{options.output}: the average of {len(kept)} checkpoints")


def _scores(options: Any, header: Any, states: Any) -> Any:
    """CIDEr-D (× 100) of the average of some of the members on the images of the options."""
    import torch

    from captioner import metrics
    from captioner.config import IMAGES, ModelConfig, SearchConfig
    from captioner.data.annotations import read
    from captioner.data.dataset import read_images
    from captioner.data.samplers import unreadable_image
    from captioner.data.vocabulary import Vocabulary
    from captioner.devices import best_device, choose_workers
    from captioner.models.captioner import Captioner
    from captioner.models.encoder import Encoder
    from captioner.models.weight_averaging import average

    config, search, device = ModelConfig(**header["model"]), SearchConfig(beam=options.beam), best_device()
    examples, _ = read(options.annotations, options.images, "val")
    references = [[metrics.ptb_tokenize(caption) for caption in example.captions] for example in examples]
    frozen = config.trainable_layers == 0
    encoder = Encoder(config, weights=frozen)
    model = Captioner(config, Vocabulary(header["vocabulary"]), encoder, header["encoder_digest"]).to(device).eval()
    seen: list[torch.Tensor] = []  # features, where every member has the same

    def images() -> Any:
        paths = [example.path for example in examples]
        for block, errors in read_images(paths, config.image_size, IMAGES, choose_workers(-1, device)):
            for error in errors:
                if error is not None:
                    raise unreadable_image(error)
            yield model.features(block.to(device))

    def score(members: list[int]) -> float:
        model.load_weights(average([states[i] for i in members]))
        with torch.inference_mode():
            if frozen and not seen:
                seen.extend(images())
            found = [captions for block in (seen if frozen else images()) for captions in model.search(block, search)]
        words = [metrics.ptb_tokenize(captions[0].text if captions else "") for captions in found]
        return 100 * float(metrics.cider_d(references, words).mean())

    return score
