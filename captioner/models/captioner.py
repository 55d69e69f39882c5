"""Encoder, decoder, vocabulary and transform as one plain module, and ensembles of such modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import MAX_LENGTH, ModelConfig
from captioner.data.vocabulary import PAD, SPECIAL, START, Vocabulary
from captioner.decoding.search import State, Step, ensemble
from captioner.errors import UserError, one_line
from captioner.models import checkpoint, confidence
from captioner.models.attention import AttentionDecoder
from captioner.models.backbones import meta_device, shapes_only
from captioner.models.base import CaptionModel, Concept
from captioner.models.clip_decoder import ClipDecoder
from captioner.models.concepts import class_names
from captioner.models.custom import (
    DecoderClass,
    check_given,
    custom_parts,
    make_decoder,
    make_encoder,
    probe_features,
)
from captioner.models.decoder import Decoder
from captioner.models.differences import from_differences, to_differences
from captioner.models.encoder import (
    Encoder,
    cached_shape,
    feature_shape,
    leaves_out_frozen_stages,
    pretrained_weights,
    weights_digest,
)

SHOWN, LEAST_SHOWN = 3, 0.05  # concepts of an image: at most so many, at least so probable


class Captioner(CaptionModel):
    """Image captioning model.

    Args:
        config: the architecture.
        vocabulary: the words.
        encoder: None if the inputs are features, as in training from a feature file.
        encoder_digest: digest of the ImageNet weights the encoder started from.
        max_length: words of a caption where a search names no number.
        decoder: the class of a decoder of the caller's own, with the methods of
            :class:`captioner.models.decoder.Decoder`; see docs/extend.md.
    """

    encoder: Any

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        encoder: nn.Module | None,
        encoder_digest: str,
        max_length: int = MAX_LENGTH,
        decoder: DecoderClass | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.config, self.vocabulary, self.encoder_digest = config, vocabulary, encoder_digest
        self.image_size, self.frames = config.image_size, config.frames
        self.encoder, self.unsaved_encoder = encoder, list[Encoder]()
        shape = probe_features(encoder, config) if config.custom_encoder else feature_shape(config)
        kind = ClipDecoder if config.frames else AttentionDecoder if config.attention != "none" else Decoder
        self.decoder: Any = make_decoder(decoder or kind, config, len(vocabulary), shape[-1])
        self.custom_decoder = None if decoder is None else type(self.decoder).__name__
        self.has_attention = isinstance(self.decoder, AttentionDecoder)
        self.has_concepts = getattr(self.decoder, "concepts", None) is not None

    def features(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) uint8 → (I, F) or (I, P, F), of S frames each (I, S, …); features pass through.

        Maps (I, D) that are cached before the first trained stage go through the trained stages.
        """
        if images.is_floating_point():
            # Of features the shapes of the maps are not needed, whose computation would import torch's compiler.
            other = self.config.trainable_layers > 0 and images.shape[-1] != feature_shape(self.config)[-1]
            if not other or images.shape[1:] != cached_shape(self.config):
                return images
        encoder = self._frozen_encoder(images.device) if self.encoder is None else self.encoder
        return encoder(images)

    def _frozen_encoder(self, device: torch.device) -> Encoder:
        """The encoder of a model that was trained on its features, built when it is first needed.

        It is in a list, so that its tensors are none of the model's, as in the checkpoints of a training.
        """
        if self.config.trainable_layers:
            raise UserError("this model has no encoder, whose stages were trained: load its checkpoint")
        if not self.unsaved_encoder:
            self.unsaved_encoder.append(Encoder(self.config))
        return self.unsaved_encoder[0].to(device)

    def load_head(self) -> None:
        """Copy the ImageNet head of the encoder, if its classes are the concepts of the model."""
        if self.has_concepts and self.decoder.concepts.kind == "classes":
            self.decoder.concepts.load_head(self.config.encoder)

    def start_search(self, images: Tensor) -> tuple[Step, State, State]:
        return self.decoder.step, *self.decoder.start(self.features(images))

    @torch.inference_mode()
    def attention_maps(self, images: Tensor, captions: Sequence[str]) -> list[Tensor]:
        if not isinstance(self.decoder, AttentionDecoder):
            return super().attention_maps(images, captions)
        if not captions:
            return []
        ids = [torch.tensor([START, *self.vocabulary.encode(text.split())]) for text in captions]
        words = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD).to(self.device)  # (I, T)
        weights = self.decoder.attention_weights(self.features(images), words).cpu()  # (I, T, P or P + 1)
        grid = self.config.grid
        return [w[: len(i), : grid**2].unflatten(1, (grid, grid)) for w, i in zip(weights, ids, strict=True)]

    @torch.inference_mode()
    def concepts(self, images: Tensor) -> list[tuple[Concept, ...]]:
        if not self.has_concepts:
            return super().concepts(images)
        part, features = self.decoder.concepts, self.features(images).float()
        values, places = part.probabilities(features.mean(dim=1) if self.has_attention else features).topk(SHOWN)
        names = class_names(self.config.encoder) if part.kind == "classes" else self.vocabulary.words[len(SPECIAL) :]
        return [
            tuple((names[i].replace("_", " "), p) for i, p in zip(*row, strict=True) if p >= LEAST_SHOWN)
            for row in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def header(self) -> dict[str, Any]:
        more: dict[str, Any] = {"encoder_digest": self.encoder_digest, "max_length": self.max_length}
        if self.custom_decoder is not None:
            more["decoder"] = self.custom_decoder
        if self.calibration is not None:
            more["calibration"] = asdict(self.calibration)
        return checkpoint.make_header(self.config, self.vocabulary, **more)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        encoder: dict[str, Tensor] = {}
        if self.encoder is not None:
            encoder = self.encoder.state_dict() if self.config.custom_encoder else self.encoder.weights()
        state = {f"encoder.{name}": value for name, value in encoder.items()}
        state |= {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        return {name: value for name, value in state.items() if name not in tied_names(self)}

    def save(self, path: str | os.PathLike, half: bool = True) -> None:
        """Write a checkpoint for inference; see :func:`save_slim`."""
        save_slim(path, self.header(), self.weights(), half)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        decoder: DecoderClass | None = None,
        encoder: nn.Module | Callable[[], nn.Module] | None = None,
    ) -> Captioner:
        """Open a checkpoint in evaluation mode, also on another device than that of its training.

        Args:
            path: as for :func:`captioner.models.checkpoint.resolve_checkpoint`. No other file of the run is needed.
            device: where to put the model.
            decoder, encoder: the custom ones of the checkpoint, if it has any: the class of the decoder, and the
                encoder or its class. The tensors of the checkpoint are copied into a copy of the encoder.

        Raises:
            UserError: the file is missing, is not a captioner checkpoint, belongs to other encoder weights, or has a
                custom decoder or encoder that is not given.
        """
        path = checkpoint.resolve_checkpoint(path)
        header, weights = checkpoint.read_checkpoint(path)
        if header.get("kind") == "language_model":
            raise UserError(f"{path} is a language model, which takes no image: captioner train --init-from {path}")
        config, vocabulary = checkpoint.parse_header(path, header)
        check_given(path, header, decoder, encoder)
        digest, own_encoder = header["encoder_digest"], brings_encoder(config, header)
        if not own_encoder and (here := weights_digest(config.encoder)) != digest:
            found = f"other weights of {config.encoder} ({digest}) than those here ({here})"
            raise UserError(f"{path} was trained on {found}: put back the file they came from")

        def build() -> Captioner:
            network = make_encoder(encoder) if encoder is not None else Encoder(config, weights=not own_encoder)
            longest = header.get("max_length", MAX_LENGTH)  # older checkpoints have none
            return cls(config, vocabulary, network, digest, longest, decoder)

        custom = build() if custom_parts(header) else None  # its code tells the tensors
        if custom is not None and (custom.custom_decoder or "") != header.get("decoder", ""):
            raise UserError(f"{path} has a custom decoder, {header['decoder']}, not a {custom.custom_decoder}")
        weights = fitting_weights(path, header, weights, custom)
        model = custom or build()
        model.load_weights(weights)
        model.calibration = confidence.parse(path, header.get("calibration"))
        return model.to(device).eval()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy tensors that :func:`fitting_weights` returns; those of the encoder may be missing."""
        missing, unexpected = self.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("encoder.") for name in {*missing} - tied_names(self)), missing


def tied_names(module: nn.Module) -> set[str]:
    """The second names of parameters that have two, such as those of tied embeddings."""
    every, first = module.named_parameters(remove_duplicate=False), module.named_parameters()
    return {name for name, _ in every} - {name for name, _ in first}


class Ensemble(CaptionModel):
    """Several models as one: the probability of a word is the mean of theirs.

    Args:
        members: models with the same vocabulary, image size and number of frames (else a UserError). Those with the
            same frozen encoder share one, and its features are computed once.
        names: of the members, for messages.
    """

    def __init__(self, members: Sequence[Captioner], names: Sequence[str]) -> None:
        super().__init__()
        first = members[0]
        encoders: dict[Any, Encoder | None] = {}
        for model, name in zip(members, names, strict=True):
            if model.vocabulary.words != first.vocabulary.words:
                sizes = f"{len(first.vocabulary):,} and {len(model.vocabulary):,} words"
                raise UserError(f"{names[0]} and {name} have different vocabularies ({sizes}): train them on the same")
            if model.image_size != first.image_size:
                sizes = f"{first.image_size} and {model.image_size} pixels"
                raise UserError(f"{names[0]} and {name} take images of different sizes ({sizes})")
            if model.frames != first.frames:
                raise UserError(f"{names[0]} and {name} take {first.frames} and {model.frames} frames (0: one image)")
            if model.config.trainable_layers == 0 and not model.config.custom_encoder:
                same = (model.encoder_digest, model.config.encoder, model.config.second_size, model.config.grid)
                model.encoder = encoders.setdefault(same, model.encoder)
        self.members = nn.ModuleList(members)
        self.vocabulary, self.image_size, self.frames = first.vocabulary, first.image_size, first.frames
        self.max_length = max(model.max_length for model in members)

    def start_search(self, images: Tensor) -> tuple[Step, State, State]:
        members: Any = self.members
        one_of_each = {model.encoder: model for model in members}  # an encoder that models share runs once
        features = {encoder: model.features(images) for encoder, model in one_of_each.items()}
        return ensemble([model.start_search(features[model.encoder]) for model in members])


def load(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | None,
    device: str | torch.device,
    decoder: DecoderClass | None = None,
    encoder: nn.Module | Callable[[], nn.Module] | None = None,
) -> CaptionModel:
    """The model of one checkpoint (None: the shipped one), or the ensemble of several; see :meth:`Captioner.load`."""
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return Captioner.load(paths, device, decoder, encoder)
    if not isinstance(paths, Iterable) or isinstance(paths, bytes) or not (files := [*paths]):
        raise UserError(f"checkpoints are {paths!r:.60}: expected a path, or a list of one or more")
    members = [Captioner.load(path, device, decoder, encoder) for path in files]
    return members[0] if len(members) == 1 else Ensemble(members, [str(path or "the shipped model") for path in files])


def brings_encoder(config: ModelConfig, header: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds the whole encoder: exported ones do, and those that leave out none of its stages."""
    return header.get("encoder_inside") is True or not leaves_out_frozen_stages(config)


def has_differences(header: Mapping[str, Any]) -> bool:
    """Whether a slim checkpoint holds fine-tuned stages alone, whose pretrained weights ship with captioner."""
    options = header["model"]
    trained = options.get("trainable_layers", 0) > 0 and header.get("encoder_inside") is not True
    return trained and options.get("encoder") == "resnet50_v1"


def save_slim(
    path: str | os.PathLike, header: Mapping[str, Any], weights: Mapping[str, Tensor], half: bool = True
) -> None:
    """Write a .safetensors file in fp16, and stages of resnet50_v1 that were fine-tuned as int8 differences.

    Without `half` everything is written as it is. See :mod:`captioner.models.differences`.
    """
    if half and has_differences(header):
        stages = {name: value for name, value in weights.items() if name.startswith("encoder.")}
        weights = {**weights, **to_differences(stages, pretrained_weights(header["model"]["encoder"]))}
    checkpoint.save_slim(path, header, weights, half)


def fitting_weights(
    path: str | os.PathLike, header: Mapping[str, Any], weights: Mapping[str, Tensor], custom: Captioner | None = None
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, as of :meth:`Captioner.weights`, without frozen stages, which those of runs have.

    UserError unless they are those of the model in its header, which is never allocated, or those of `custom`, the
    model with its custom parts.
    """
    config, vocabulary = checkpoint.parse_header(path, header)
    whole = brings_encoder(config, header)
    if custom is None:
        check_given(path, header)
    try:
        if has_differences(header):
            weights = from_differences(weights, pretrained_weights(config.encoder))
        with meta_device():  # a header may require any amount of memory
            model = custom or Captioner(config, vocabulary, None, "")
        expected = {k: value for k, value in model.state_dict().items() if not k.startswith("encoder.")}
        if custom is not None and config.custom_encoder:
            expected = model.state_dict()
        elif whole or config.trainable_layers:
            encoder: Any = shapes_only(lambda: Encoder(config, weights=False))
            tensors = encoder.state_dict() if whole else encoder.weights()
            expected |= {f"encoder.{name}": value for name, value in tensors.items()}
        tied = tied_names(model)
        expected, weights = ({k: v for k, v in each.items() if k not in tied} for each in (expected, weights))
        if not whole:
            weights = {k: value for k, value in weights.items() if k in expected or not k.startswith("encoder.")}
        if weights.keys() != expected.keys():
            missing, unexpected = sorted(expected.keys() - weights), sorted(weights.keys() - expected)
            raise ValueError(f"missing {missing}, unexpected {unexpected}")
        for name, value in expected.items():
            found = weights[name]
            if found.shape != value.shape or found.is_floating_point() != value.is_floating_point():
                wanted = f"{value.dtype} {list(value.shape)}"
                raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, expected {wanted}")
    except (RuntimeError, TypeError, ValueError) as error:  # the first two: a size, or a product of sizes, over 64 bits
        if custom is not None:
            what = " and ".join(custom_parts(header).values())
            raise UserError(f"{path} does not fit {what} ({one_line(error)}): give the class that saved it") from None
        raise UserError(f"{path} does not fit its own header ({one_line(error)}): it is damaged") from None
    return dict(weights)
