"""Encoder, decoder, vocabulary and transform as one plain module: images in, captions out."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.vocabulary import PAD, SPECIAL, START, Vocabulary, is_word
from captioner.decoding.search import State, Step, ensemble
from captioner.errors import UserError
from captioner.files import atomic_write
from captioner.models.attention import AttentionDecoder
from captioner.models.base import CaptionModel
from captioner.models.clip_decoder import SequenceDecoder
from captioner.models.decoder import Decoder
from captioner.models.encoder import CHECKPOINTS, Encoder, check_unpacked, feature_size, weights_digest

SHIPPED = CHECKPOINTS / "captioner.safetensors"
FORMAT = 1
FILES = ("model.safetensors", "captioner.safetensors")  # of a folder for the hub, of a run


class Captioner(CaptionModel):
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
        self.image_size, self.frames, self.attends = config.image_size, config.frames, config.attention != "none"
        self.encoder = encoder
        kind = Decoder if config.attention == "none" else AttentionDecoder
        if config.frames:
            kind = SequenceDecoder
        self.decoder = kind(config, len(vocabulary), feature_size(config))

    # ---- captions

    def features(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) uint8 → (I, F) or (I, P, F), of S frames each (I, S, …); features pass through."""
        if images.is_floating_point():
            return images
        assert self.encoder is not None, "this model was made to be fed with features"
        return self.encoder(images)

    def begin(self, images: Tensor) -> tuple[Step, State, State]:
        """Images (I, 3, H, W) uint8, or their features (I, F) → step, state and context of a search."""
        return self.decoder.step, *self.decoder.start(self.features(images))

    @torch.inference_mode()
    def look(self, images: Tensor, captions: Sequence[str]) -> list[Tensor]:
        """Where on the image each word is looked for; see :meth:`CaptionModel.look`."""
        if not isinstance(self.decoder, AttentionDecoder):
            return super().look(images, captions)
        if not captions:
            return []
        ids = [torch.tensor([START, *self.vocabulary.encode(text.split())]) for text in captions]
        words = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD).to(self.device)
        maps = self.decoder.maps(self.features(images), words).cpu()  # (I, T, P or P + 1)
        grid = self.config.grid
        return [m[: len(i), : grid**2].unflatten(1, (grid, grid)) for m, i in zip(maps, ids, strict=True)]

    # ---- checkpoints

    def header(self) -> dict[str, Any]:
        """What a checkpoint holds beside the tensors, as plain values."""
        return {
            "format": FORMAT,
            "model": asdict(self.config),
            "vocabulary": list(self.vocabulary.words[len(SPECIAL) :]),
            "level": self.vocabulary.level,
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
            path: the file, the folder of a run or of ``captioner export --to hf``, or hf://organisation/name, maybe
                with @revision, of the Hugging Face hub; None is the model that ships with captioner.
            device: where to put the model; a checkpoint made on a GPU opens on a CPU.

        Raises:
            UserError: the file is missing, or is not a captioner checkpoint, or belongs to other encoder weights.
        """
        path = located(path) if path is not None else SHIPPED
        header, state = read_checkpoint(path)
        if header.get("kind") == "language_model":
            raise UserError(f"{path} is a language model, which sees no image: captioner train --init-from {path}")
        config, vocabulary = described(path, header)
        digest = header["encoder_digest"]
        own_encoder = brings_encoder(config, header)
        if not own_encoder and weights_digest(config.encoder) != digest:
            raise UserError(
                f"{path} was trained on other weights of {config.encoder} ({digest}) than those here "
                f"({weights_digest(config.encoder)}): put back the file they came from"
            )
        check_fits(path, state, config, vocabulary, own_encoder)
        model = cls(config, vocabulary, Encoder(config, weights=not own_encoder), digest)
        model.load_weights(state, own_encoder)
        return model.to(device).eval()

    def load_weights(self, state: Mapping[str, Tensor], own_encoder: bool | None = None) -> None:
        """Take over the tensors of :meth:`weights`; all of them must fit, and be there.

        Args:
            state: the tensors.
            own_encoder: whether the encoder's have to be among them; None: where it is trained.
        """
        own_encoder = self.config.trainable_layers > 0 if own_encoder is None else own_encoder
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        if self.config.tie_embeddings:
            state["decoder.output.weight"] = state["decoder.embedding.weight"]
        missing, unexpected = self.load_state_dict(state, strict=False)
        if not own_encoder:
            missing = [name for name in missing if not name.startswith("encoder.")]
        if missing or unexpected:
            raise KeyError(f"missing {missing}, unexpected {unexpected}")


class Ensemble(CaptionModel):
    """Several models as one: at every step the mean of their probabilities decides.

    Args:
        members: models with the same vocabulary and image size. Those with the same frozen encoder share one, which
            sees each image once.
        names: what to call them in a message.

    Raises:
        UserError: they do not fit together.
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
                raise UserError(f"{names[0]} and {name} look at images of different sizes ({sizes})")
            if model.frames != first.frames:
                raise UserError(f"{names[0]} and {name} take {first.frames} and {model.frames} frames (0: one image)")
            if model.config.trainable_layers == 0:
                same = (model.encoder_digest, model.config.encoder, model.config.second_size, model.config.grid)
                model.encoder = encoders.setdefault(same, model.encoder)
        self.members = nn.ModuleList(members)
        self.vocabulary, self.image_size, self.frames = first.vocabulary, first.image_size, first.frames

    def begin(self, images: Tensor) -> tuple[Step, State, State]:
        """Images (I, 3, H, W) uint8, or their features (I, F) → step, state and context of a search."""
        members: Any = self.members
        features: dict[int, Tensor] = {}
        for model in members:
            if id(model.encoder) not in features:
                features[id(model.encoder)] = model.features(images)
        return ensemble([model.begin(features[id(model.encoder)]) for model in members])


def located(path: str | os.PathLike) -> Path:
    """The file of a checkpoint: itself, that in a folder, or that of a repository on the hub.

    Raises:
        UserError: huggingface_hub is missing, or has no such model.
    """
    name = os.fspath(path)
    if name.startswith("hf://"):
        repository, _, revision = name[len("hf://") :].partition("@")
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            raise UserError(f"{name} needs huggingface_hub: pip install 'captioner[hub]'") from None
        try:
            name = snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES))
        except Exception as error:  # of the network, of the hub, of a name that is none
            raise UserError(f"{name} cannot be fetched ({' '.join(str(error).split())[:200]})") from None
    if os.path.isdir(name):
        there = [Path(name, file) for file in FILES if os.path.isfile(os.path.join(name, file))]
        if not there:
            raise UserError(f"{path} has none of {', '.join(FILES)}: name a checkpoint")
        return there[0]
    return Path(name)


def vocabulary_of(path: Path) -> Vocabulary:
    """The vocabulary of a checkpoint of any kind.

    Raises:
        UserError: it is no checkpoint of captioner.
    """
    return described(path, read_checkpoint(path)[0])[1]


def described(path: Path, header: Mapping[str, Any]) -> tuple[ModelConfig, Vocabulary]:
    """What the header of a checkpoint says, each value looked at, whoever wrote it.

    Raises:
        UserError: a value is missing, of another type or out of its range, or the words are no words.
    """
    try:
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this one reads {FORMAT}")
        options, words, level = header["model"], header["vocabulary"], header.get("level", "word")
        if not isinstance(options, dict) or not isinstance(words, list) or not isinstance(level, str):
            raise ValueError("its model, vocabulary and level are not an object, a list and a string")
        for name, value in options.items():
            default = getattr(ModelConfig, name, None)
            kinds = (int, float) if isinstance(default, float) else type(default)
            if default is None or not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
                raise ValueError(f"model.{name} is {str(value)[:60]!r}")
        if not isinstance(header.get("encoder_digest"), str) and header.get("kind") != "language_model":
            raise ValueError(f"encoder_digest is {str(header.get('encoder_digest'))[:60]!r}")
        for word in words:
            if not is_word(word, level):
                raise ValueError(f"{str(word)[:60]!r} is no {level}")
        return ModelConfig(**options), Vocabulary(words, level)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint this captioner understands ({error})") from None


def brings_encoder(config: ModelConfig, header: Mapping[str, Any]) -> bool:
    """Whether the tensors of an encoder are in a checkpoint: where it was trained, and in exported ones."""
    return config.trainable_layers > 0 or header.get("encoder_inside") is True


def check_fits(
    path: Path, state: Mapping[str, Tensor], config: ModelConfig, vocabulary: Vocabulary, own_encoder: bool
) -> None:
    """Compare the tensors of a checkpoint with those of the model it describes, before memory is taken for that.

    Raises:
        UserError: they are others; the message names the first.
    """
    try:
        with torch.device("meta"):  # a description may ask for any amount of memory
            wanted = Captioner(config, vocabulary, None, "").state_dict()
            if own_encoder:
                wanted |= {f"encoder.{name}": value for name, value in _encoder_state(config).items()}
        if config.tie_embeddings:
            del wanted["decoder.output.weight"]
        if state.keys() != wanted.keys():
            missing, more = sorted(wanted.keys() - state), sorted(state.keys() - wanted)
            raise ValueError(f"missing {missing}, unexpected {more}")
        for name, value in wanted.items():
            its = state[name]
            if its.shape != value.shape or its.is_floating_point() != value.is_floating_point():
                was, expected = (f"{each.dtype} {list(each.shape)}" for each in (its, value))
                raise ValueError(f"{name} is {was}, expected {expected}")
    except (RuntimeError, ValueError, TypeError) as error:  # TypeError: of a size beyond 64 bits
        reason = " ".join(str(error).split())
        raise UserError(f"{path} does not fit its own description ({reason[:300]}): it is damaged") from None


def _encoder_state(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of an encoder, their shapes alone where it can be made so."""
    try:
        return Encoder(config, weights=False).state_dict()
    except NotImplementedError:  # RegNets compute with tensors when they are made
        with torch.device("cpu"):
            return Encoder(config, weights=False).state_dict()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, once each is known to be an array of finite numbers that has memory of its own.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in state.items():
        if (
            not isinstance(value, Tensor)
            or (value.layout, value.device.type, value.is_quantized) != (torch.strided, "cpu", False)
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()  # one number for all of them
        ):
            raise ValueError(f"{name} is no plain tensor")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} has values that are no numbers; an earlier checkpoint may be whole")
    return dict(state)


def load(paths: str | os.PathLike | Sequence[str | os.PathLike] | None, device: str | torch.device) -> CaptionModel:
    """The model of one checkpoint (None: the shipped one), or the ensemble of several; see :meth:`Captioner.load`."""
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return Captioner.load(paths, device)
    members = [Captioner.load(path, device) for path in paths]
    return members[0] if len(members) == 1 else Ensemble(members, [str(path) for path in paths])


def save_slim(
    path: str | os.PathLike,
    header: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    half: bool = True,
) -> None:
    """Write header and tensors as safetensors, aside and renamed; see :meth:`Captioner.save`.

    A tensor that fp16 cannot hold, after a training that went wrong, keeps its type.

    Raises:
        UserError: it cannot be written there.
    """
    from safetensors.torch import save

    tensors = {}
    for name, value in weights.items():
        short = value.half() if half and value.is_floating_point() else value
        kept = short if short.isfinite().all() else value
        tensors[name] = kept.detach().cpu().contiguous()
    with atomic_write(path) as part:
        part.write_bytes(save(tensors, metadata={"captioner": json.dumps(header)}))


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
                if not isinstance(header, dict):
                    raise ValueError(f"its header is a {type(header).__name__}")
                return header, plain({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        if not zipfile.is_zipfile(path):  # nor was any that captioner wrote
            raise pickle.UnpicklingError
        check_unpacked(path)
        with warnings.catch_warnings():  # of what else might be wrong with a file that is refused in one line
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint["captioner"], dict):
            raise ValueError(f"it holds a {type(checkpoint).__name__}")
        state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        return checkpoint["captioner"], plain(state)
    except Exception as error:  # safetensors, pickle, zip and JSON each have their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run the code in it
            reason = "no file of weights, or one with code in it, which is not run"
        raise UserError(f"{path} is not a captioner checkpoint ({reason}): name one that captioner wrote") from None
