"""Encoder, decoder, vocabulary and transform as one plain module: pictures in, captions out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from captioner.config import PICTURES, ModelConfig, SearchConfig
from captioner.dataset import read_pictures
from captioner.decoder import Decoder
from captioner.encoder import CHECKPOINTS, Encoder, feature_size, weights_digest
from captioner.errors import UserError
from captioner.images import ImageError, eval_transform, open_image
from captioner.search import beam
from captioner.vocabulary import END, PAD, SPECIAL, START, UNK, Vocabulary

SHIPPED = CHECKPOINTS / "captioner.safetensors"
FORMAT = 1
Picture = str | os.PathLike | Image.Image


@dataclass(frozen=True)
class Caption:
    """A caption with its scores.

    Attributes:
        text: the words.
        log_prob: natural log-probability of the words and the END after them.
        score: log_prob over the length penalty; captions of a picture are ranked by it.
    """

    text: str
    log_prob: float
    score: float


class Captioner(nn.Module):
    """Image captioning model.

    Args:
        config: the architecture.
        vocabulary: the words.
        encoder: None when only features are fed, as in training from a feature file.
        encoder_digest: digest of the ImageNet weights the encoder started from.
    """

    def __init__(
        self, config: ModelConfig, vocabulary: Vocabulary, encoder: Encoder | None, encoder_digest: str
    ) -> None:
        super().__init__()
        self.config, self.vocabulary, self.encoder_digest = config, vocabulary, encoder_digest
        self.encoder = encoder
        self.decoder = Decoder(config, len(vocabulary), feature_size(config))

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.decoder.output.bias.device

    # ---- captions

    def features(self, pictures: Tensor) -> Tensor:
        """(I, 3, H, W) uint8 → (I, F) by the encoder; (I, F) features pass through."""
        if pictures.dim() == 2:
            return pictures
        assert self.encoder is not None, "this model was made to be fed with features"
        return self.encoder(pictures)

    @torch.inference_mode()
    def search(self, pictures: Tensor, config: SearchConfig) -> list[list[Caption]]:
        """The n best captions of each picture, best first; the model should be in evaluation mode.

        Args:
            pictures: (I, 3, H, W) uint8 pictures or (I, F) features, on the model's device.
            config: beam width and so on.
        """
        if len(pictures) == 0:
            return []
        state, context = self.decoder.start(self.features(pictures))
        found = beam(self.decoder.step, state, context, start=START, end=END, banned=(PAD, START, UNK), config=config)
        words, lengths, log_probs, scores = (part.tolist() for part in found[:4])
        return [
            [
                Caption(self.vocabulary.decode(words[i][k][: lengths[i][k]]), log_probs[i][k], scores[i][k])
                for k in range(config.n_best)
                if scores[i][k] > float("-inf")
            ]
            for i in range(len(words))
        ]

    def caption_files(
        self, paths: Sequence[Path | str], config: SearchConfig, batch_size: int = PICTURES, workers: int = 0
    ) -> Iterator[list[Caption] | ImageError]:
        """For each picture file, in order, its captions or why it cannot be read; captioned in batches."""
        for pictures, errors in read_pictures(paths, self.config.image_size, batch_size, workers):
            found = iter(self.search(pictures.to(self.device), config))
            for error in errors:
                yield error if error is not None else next(found)

    def caption(self, pictures: Picture | Sequence[Picture], **search: Any) -> Any:
        """Caption one picture (a string comes back) or a list of them (a list of strings).

        Args:
            pictures: path or PIL image, or a list of these.
            search: fields of :class:`captioner.config.SearchConfig`: beam, length_penalty, max_length, n_best.
                With n_best each picture gets a list of :class:`Caption` instead of a string.

        Raises:
            ImageError: a picture cannot be read.
        """
        single = isinstance(pictures, (str, os.PathLike, Image.Image))
        many: Sequence[Any] = [pictures] if single else pictures  # type: ignore[assignment, list-item]
        size, config = self.config.image_size, replace(SearchConfig(), **search)
        found: list[list[Caption]] = []
        for first in range(0, len(many), PICTURES):
            part = [eval_transform(open_image(one, size_hint=size), size) for one in many[first : first + PICTURES]]
            found += self.search(torch.stack(part).to(self.device), config)
        answers = found if "n_best" in search else [captions[0].text for captions in found]
        return answers[0] if single else answers

    # ---- checkpoints

    def header(self) -> dict[str, Any]:
        """What a checkpoint holds beside the tensors, as plain values."""
        return {
            "format": FORMAT,
            "model": asdict(self.config),
            "vocabulary": list(self.vocabulary.words[len(SPECIAL) :]),
            "encoder_digest": self.encoder_digest,
        }

    def weights(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: the decoder's, and the encoder's unless it is frozen.

        A frozen encoder is known by its name and the digest of its weights.
        """
        state = self.state_dict()
        if self.config.trainable_layers == 0:
            state = {name: value for name, value in state.items() if not name.startswith("encoder.")}
        if self.config.tie_embeddings:
            del state["decoder.output.weight"]
        return state

    def save(self, path: str | os.PathLike, half: bool = True) -> None:
        """Write a slim checkpoint for inference, aside and renamed.

        Args:
            path: a .safetensors file.
            half: store fp16.
        """
        save_slim(path, self.header(), self.weights(), half)

    @classmethod
    def load(cls, path: str | os.PathLike | None = None, device: str | torch.device = "cpu") -> Captioner:
        """Open a checkpoint of any kind: captioner.safetensors, best.ckpt, last.ckpt; no other file is needed.

        Args:
            path: the file; None is the model that ships with captioner.
            device: where to put the model; a checkpoint made on a GPU opens on a CPU.

        Raises:
            UserError: the file is missing, or is not a captioner checkpoint, or belongs to other encoder weights.
        """
        path = Path(path) if path is not None else SHIPPED
        header, state = read_checkpoint(path)
        try:
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}, this one reads {FORMAT}")
            config = ModelConfig(**header["model"])
            vocabulary = Vocabulary(header["vocabulary"])
            digest = str(header["encoder_digest"])
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a checkpoint this captioner understands ({error})") from None
        own_encoder = config.trainable_layers > 0
        if not own_encoder and weights_digest(config.encoder) != digest:
            raise UserError(
                f"{path} was trained on other weights of {config.encoder} ({digest}) than those here "
                f"({weights_digest(config.encoder)}): put back the file they came from"
            )
        model = cls(config, vocabulary, Encoder(config, weights=not own_encoder), digest)
        try:
            model.load_weights(state)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} does not fit its own description ({reason[:300]}): it is damaged") from None
        return model.to(device).eval()

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of :meth:`weights`; all of them must fit."""
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        if self.config.tie_embeddings:
            state["decoder.output.weight"] = state["decoder.embedding.weight"]
        missing, unexpected = self.load_state_dict(state, strict=False)
        if self.config.trainable_layers == 0:
            missing = [name for name in missing if not name.startswith("encoder.")]
        if missing or unexpected:
            raise KeyError(f"missing {missing}, unexpected {unexpected}")


def save_slim(
    path: str | os.PathLike,
    header: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    half: bool = True,
) -> None:
    """Write header and tensors as safetensors, aside and renamed; see :meth:`Captioner.save`."""
    from safetensors.torch import save

    path = Path(path)
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in weights.items()
    }
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(save(tensors, metadata={"captioner": json.dumps(header)}))
    os.replace(aside, path)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a slim checkpoint or of a Lightning checkpoint of captioner, on the CPU.

    Raises:
        UserError: missing, unreadable, or not one of these.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: train one with `captioner train`, or name another file")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["captioner"])
                return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with warnings.catch_warnings():  # of what else might be wrong with a file that is refused in one line
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"it holds a {type(checkpoint).__name__}")
        state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        return checkpoint["captioner"], state
    except Exception as error:  # safetensors, pickle, zip and JSON each have their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a captioner checkpoint ({type(error).__name__}: {reason})") from None
