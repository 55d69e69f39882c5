"""Every option with its default and its limits, each in one place: frozen dataclasses of plain values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from captioner.errors import UserError

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_v1")
CUSTOM = "custom:"  # in front of the class name of an encoder of the caller's own
MAX_LENGTH = 20  # words of a caption in a search, at least, where nothing else is said
VOCABULARIES = ("keep", "extend", "count")  # the values of data.vocabulary that are no file
IMAGE_BATCH_SIZE = 32  # images encoded together, outside training
MOST = 2**53  # of any number: libraries overflow at larger ones


Limits = tuple[Callable[[float], bool], str]  # which numbers an option may have, and their description in messages
AT_LEAST_0: Limits = (lambda x: x >= 0, "0 or more")
AT_LEAST_1: Limits = (lambda x: x >= 1, "1 or more")
POSITIVE: Limits = (lambda x: x > 0, "more than 0")
BELOW_1: Limits = (lambda x: 0 <= x < 1, "0 up to, but not including, 1")
ABOVE_0_TO_1: Limits = (lambda x: 0 < x <= 1, "more than 0, up to 1")
SEED: Limits = (lambda x: 0 <= x < 2**32, "0 to 4294967295")  # what numpy, torch and Lightning all take


# The types of values that options of a type may have, such as numpy's numbers, and their description in messages.
TYPES: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a string"),
}


def _from_to(least: float, most: float) -> Limits:
    return (lambda x: least <= x <= most, f"{least} to {most}")


@dataclass(frozen=True)
class _Config:
    """Base of the options, which validates them; messages put `group` before their names."""

    _group: ClassVar[str]

    def __init_subclass__(cls, group: str = "") -> None:
        cls._group = group

    @classmethod
    def of(cls, options: Mapping[str, Any], also: Sequence[str] = ()) -> Self:
        """These options, the others by default; UserError for an unknown name, with the nearest of these and `also`."""
        names = [each.name for each in fields(cls)]
        for name in options:
            if name not in names:
                close = get_close_matches(name, [*names, *also], 1)
                hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join([*names, *also])}"
                raise UserError(f"there is no option {name}: {hint}")
        return cls(**options)

    def __post_init__(self) -> None:
        """Check types and reject None: values also come from Python and from the headers of checkpoints."""
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if kind in TYPES:
                possible, expected = TYPES[kind]
                good = isinstance(value, possible) and isinstance(value, bool) == (kind is bool)
                self._require(good, name, expected)
            if get_origin(kind) is Literal:
                self._require(value in choices, name, f"one of {', '.join(choices)}")
            self._require(value is not None or type(None) in choices, name, "a value")
        self._check()

    def _check(self) -> None:
        """Check ranges and combinations of options."""

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise UserError(f"{self._group}{name} is {getattr(self, name)!r}: expected {expected}")

    def _limit(self, names: str, limits: Limits) -> None:
        holds, expected = limits
        for name in names.split():
            value = getattr(self, name)
            self._require(holds(value), name, expected)
            self._require(value < MOST, name, "a smaller number")


@dataclass(frozen=True)
class ModelConfig(_Config, group="model."):
    """The architecture of the model, stored in every checkpoint.

    Args:
        encoder: a model of torchvision, or timm:NAME, with ImageNet weights; from Python also custom:CLASS
        image_size: images are resized to squares with sides of this many pixels
        second_size: encode images also at this smaller size and concatenate both features (0 = one size)
        trainable_layers: number of the encoder's last stages that are fine-tuned (0 = frozen; 5 = all of a ResNet)
        grid: grid × grid features of an image are kept, for attention or for the frames of a clip (0 = their mean)
        attention: over the grid: soft, adaptive (visual sentinel) or updown (two LSTMs)
        attention_size: size of the space in which grid cells and hidden state are compared
        concepts: what is in the image, by name, beside its feature: ImageNet's classes, by the encoder's own head, or
            the commonest words of the captions, learned with the decoder
        frames: caption clips and albums, from up to this many evenly spaced frames or images (0 = single images)
        cell: rnn is the lecture's tanh RNN
        layers: recurrent layers, 1 to 5
        image_as: how the image enters: at every_step (W_ih v), as the first_word (Show and Tell) or the initial_state
        hidden_size: size of the hidden state
        embedding_size: size of the word embeddings
        dropout: dropout before the output layer and between recurrent layers
        input_dropout: dropout on the input of the first recurrent layer, word and image
        feature_dropout: dropout on the image feature
        cell_dropout: share of the grid cells of an image that are dropped at random in training
        tie_embeddings: the output layer shares the weights of the word embeddings (needs embedding_size = hidden_size)
    """

    encoder: str = "resnet50_v1"
    image_size: int = 288
    second_size: int = 224
    trainable_layers: int = 0
    grid: int = 0
    attention: Literal["none", "soft", "adaptive", "updown"] = "none"
    attention_size: int = 256
    concepts: Literal["none", "classes", "words"] = "none"
    frames: int = 0
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    layers: int = 1
    image_as: Literal["every_step", "first_word", "initial_state"] = "every_step"
    hidden_size: int = 768
    embedding_size: int = 512
    dropout: float = 0.5
    input_dropout: float = 0.1
    feature_dropout: float = 0.2
    cell_dropout: float = 0.0
    tie_embeddings: bool = False

    def _check(self) -> None:
        self._check_encoder()
        self._limit("image_size", _from_to(32, 1024))
        self._limit("grid", _from_to(0, 64))
        self._limit("layers", _from_to(1, 5))
        most = 5 if self.encoder in ENCODERS else 100  # the encoder checks the number of its stages
        self._limit("trainable_layers", _from_to(0, most))
        self._limit("attention_size hidden_size embedding_size", AT_LEAST_1)
        self._limit("dropout input_dropout feature_dropout cell_dropout", BELOW_1)
        smaller = self.second_size == 0 or 32 <= self.second_size < self.image_size
        self._require(smaller, "second_size", f"0, or 32 to below image_size ({self.image_size})")
        self._require(self.frames == 0 or 2 <= self.frames <= 256, "frames", "0 (one image), or 2 to 256")
        if self.attention != "none":
            self._require(self.grid > 0, "grid", f"1 or more, such as 7, for {self.attention} attention")
            self._require(self.frames == 0, "frames", "0 with attention, which takes one image")
            possible = (self.cell, self.layers, self.image_as) == ("lstm", 1, "every_step")
            self._require(possible, "attention", "none, unless cell is lstm, layers 1, image_as every_step")
        elif self.frames == 0:
            self._require(self.grid == 0, "grid", "0 without attention or frames")
        self._require(self.concepts == "none" or self.frames == 0, "concepts", "none for clips")
        if self.grid == 0:
            self._require(self.cell_dropout == 0, "cell_dropout", "0 without a grid")
        if self.tie_embeddings:
            sizes = f"embedding_size ({self.embedding_size}) and hidden_size ({self.hidden_size})"
            self._require(self.embedding_size == self.hidden_size, "tie_embeddings", f"false, since {sizes} differ")

    @property
    def custom_encoder(self) -> str:
        """The class name of an encoder of the caller's own, see docs/extend.md; empty without one."""
        return self.encoder.removeprefix(CUSTOM) if self.encoder.startswith(CUSTOM) else ""

    def _check_custom_encoder(self) -> None:
        why = "with a custom encoder, which"
        self._require(self.custom_encoder.isidentifier(), "encoder", f"{CUSTOM}CLASS, the name of a class")
        self._require(self.trainable_layers == 0, "trainable_layers", f"0 {why} trains what requires gradients")
        self._require(self.second_size == 0, "second_size", f"0 {why} gets images of one size")
        self._require(self.frames == 0, "frames", f"0 {why} takes single images")
        self._require(self.concepts == "none", "concepts", f"none {why} has no names for what it sees")

    def _check_encoder(self) -> None:
        if self.encoder.startswith(CUSTOM):
            return self._check_custom_encoder()
        if self.encoder in ENCODERS or re.fullmatch(r"timm:[\w.]+", self.encoder):
            return
        import torchvision.models

        names = torchvision.models.list_models(module=torchvision.models)
        close = ", ".join(get_close_matches(self.encoder, names, 4, 0.4)) or "convnext_tiny, vit_b_16"
        expected = f"resnet50_v1, a model of torchvision such as {close}, or timm:NAME"
        self._require(self.encoder in names, "encoder", expected)


class CaptionedSet(NamedTuple):
    """Where captions and their images are: see :func:`captioner.data.annotations.read_examples`."""

    captions: str
    images: str | None
    split: str
    listed: str | None


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(frozen=True)
class DataConfig(_Config, group="data."):
    """Where the images and captions are, and how they are batched.

    Args:
        train: training captions, any format of docs/data.md
        train_images: folder of the images, if the format needs one
        train_split: which split, if there are several; Karpathy's train includes restval. --data.train+ adds a set, and
            --data.train_images+, train_split+ and train_list+ what belongs to it; a single value is for all sets
        train_list: only the images named in this file, one per line, such as Flickr_8k.trainImages.txt
        val: validation captions, in any such format
        val_images: folder of the images, if the format needs one
        val_split: which split, if there are several
        val_list: only the images named in this file, one per line
        columns: IMAGE,CAPTION: names of a table's columns, if they are not the usual ones
        encoding: of text that is not UTF-8, such as cp1252
        captions_per_image: captions of a training image that has fewer are repeated to this number (0 = never)
        fraction: share of the training images to train on, drawn with train.seed
        level: split captions into words or into characters (char), which max_length and search.max_length then count
        min_count: words that occur less often in the training captions become UNK
        vocabulary: keep the words of --init-from (without it, those of the training captions); extend them by those of
            the training captions that they lack; count those of the training captions alone; or keep those of another
            checkpoint, which is named
        max_length: captions are cut to this many words
        batch_size: captions in a batch, divided among trainer.devices
        skip_bad_images: count and skip missing or unreadable images and images without captions, instead of stopping
        augment: crop each training image at random in each epoch, a little brighter or darker; only for an encoder with
            trained stages, whose frozen ones then run in each epoch, too
        horizontal_flip: mirror half of the images in each epoch, and exchange left and right in their English captions
        flip_words: pairs of words that it exchanges in another language, such as links:rechts,linke:rechte
        feature_cache: folder for what is computed once: features, or maps before the first trained stage
        feature_memory: GiB of features held in the memory of the device (-1 = up to half of what is free); others are
            read from the disk ahead of the steps
        workers: processes that decode images (-1 = none on a CPU, up to 8 beside a GPU)
    """

    train: str | list[str] | None = None
    train_images: str | list[str | None] | None = None
    train_split: str | list[str] = "train"
    train_list: str | list[str | None] | None = None
    val: str | list[str] | None = None
    val_images: str | list[str | None] | None = None
    val_split: str | list[str] = "val"
    val_list: str | list[str | None] | None = None
    columns: str | None = None
    encoding: str = ""
    captions_per_image: int = 0
    fraction: float = 1.0
    level: Literal["word", "char"] = "word"
    min_count: int = 4
    vocabulary: str = "keep"
    max_length: int = 30
    batch_size: int = 256
    skip_bad_images: bool = False
    augment: bool = False
    horizontal_flip: bool = False
    flip_words: str = ""
    feature_cache: str = "features"
    feature_memory: float = -1
    workers: int = -1

    def _check(self) -> None:
        self._limit("fraction", ABOVE_0_TO_1)
        self._limit("captions_per_image", AT_LEAST_0)
        self._limit("min_count max_length batch_size", AT_LEAST_1)
        self._require(
            self.feature_memory >= 0 or self.feature_memory == -1, "feature_memory", "-1 (choose), or a number of GiB"
        )
        self._require(self.workers >= -1, "workers", "-1 (choose) or more")
        self._require(self.level == "word" or not self.horizontal_flip, "horizontal_flip", "false with data.level char")
        pairs = [pair.split(":") for pair in self.flip_words.split(",") if pair]
        good = all(len(pair) == 2 and all(word.strip() for word in pair) for pair in pairs)
        self._require(good, "flip_words", "pairs of words such as links:rechts,linke:rechte")

    @property
    def vocabulary_file(self) -> str | None:
        """The checkpoint that `vocabulary` names."""
        return None if self.vocabulary in VOCABULARIES else self.vocabulary

    @property
    def flip_pairs(self) -> dict[str, str]:
        """The words of `flip_words`, each with its opposite."""
        pairs = [[word.strip().lower() for word in pair.split(":")] for pair in self.flip_words.split(",") if pair]
        return {**dict(pairs), **{b: a for a, b in pairs}}

    def sets(self, split: str) -> list[CaptionedSet]:
        """The sets of train or val, one or more; UserError without any, or without a folder, split or list for each."""
        if not (paths := _as_list(getattr(self, split) or [])):
            images = f"for most formats --data.{split}_images (folder of the images)"
            raise UserError(f"--data.{split} (captions) is needed, and {images}")
        columns = [paths]
        for name in (f"{split}_images", f"{split}_split", f"{split}_list"):
            values = _as_list(getattr(self, name))
            self._require(
                len(values) in (1, len(paths)), name, f"one value, or {len(paths)} as of {self._group}{split}"
            )
            columns.append(values if len(values) == len(paths) else values * len(paths))
        return [CaptionedSet(*row) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class TextConfig(_Config, group="data."):
    """The text that the decoder is pre-trained on, and how it is cut.

    Args:
        text: text file (UTF-8), or captions JSON, whose captions are shuffled
        val_text: the same for validation
        val_share: share of the text, from its end, that is held out if there is no val_text
        level: split the text into words or into characters (char)
        lines: each line is put between START and END, like a caption; otherwise the text is one long line
        min_count: words that occur less often in the text become UNK
        tbptt_steps: number of tokens that gradients flow back through; the hidden state is kept across them
        batch_size: number of streams the text is cut into; fewer if they are shorter than tbptt_steps
        prompt: beginning of the samples
        sample_tokens: maximum number of tokens of a sample
        temperature: temperature of the samples; lower is closer to the most likely text, 0 is greedy
    """

    text: str | None = None
    val_text: str | None = None
    val_share: float = 0.1
    level: Literal["word", "char"] = "word"
    lines: bool = True
    min_count: int = 4
    tbptt_steps: int = 35
    batch_size: int = 64
    prompt: str = ""
    sample_tokens: int = 100
    temperature: float = 1.0

    def _check(self) -> None:
        self._require(0 < self.val_share < 1, "val_share", "more than 0, less than 1")
        self._limit("min_count tbptt_steps batch_size sample_tokens", AT_LEAST_1)
        self._limit("temperature", AT_LEAST_0)


@dataclass(frozen=True)
class SearchConfig(_Config):
    """How captions are decoded.

    Args:
        beam: beam width (1 = greedy)
        n_best: captions per image, best first; at most the beam width, unless they are sampled
        max_length: maximum number of words in a caption (0 = as many as in those that it was trained on, at least 20)
        min_length: minimum number of words in a caption
        length_norm: log-probabilities are divided by ((5 + length) / 6) ** length_penalty (gnmt) or by length (average)
        length_penalty: alpha of gnmt; 0 favours short captions
        no_repeat_ngram: no sequence of this many words occurs twice in a caption (0 = off)
        no_repeat_word: no word occurs twice in a row
        no_bad_ending: no caption ends in an article, a preposition, a conjunction and the like ("a man riding a")
        must: words that every caption contains, in any order; fewer than the beam width
        must_not: words that no caption contains
        prefix: words that every caption begins with
        groups: diverse beam search: divide the beam into this many groups that avoid each other's words
        diversity: penalty of a word in nats for each earlier group that has chosen it at the same step
        sample: sample words instead of searching for the most likely caption
        temperature: temperature of sampling; below 1 favours likely words, above 1 unlikely ones
        top_k: sample from the k most likely words (0 = all)
        top_p: sample from the most likely words that together have this probability
        min_p: sample from words that are at least this fraction as likely as the most likely one
        seed: seed of sampling; the same image and seed give the same caption, independent of the other images
    """

    beam: int = 5
    n_best: int = 1
    max_length: int = 0
    min_length: int = 1
    length_norm: Literal["gnmt", "average"] = "gnmt"
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    no_repeat_word: bool = False
    no_bad_ending: bool = False
    must: str = ""
    must_not: str = ""
    prefix: str = ""
    groups: int = 1
    diversity: float = 0.5
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def _check(self) -> None:
        self._limit("beam n_best", _from_to(1, 1000))
        self._limit("max_length min_length no_repeat_ngram diversity top_k", AT_LEAST_0)
        self._limit("length_penalty", _from_to(0, 10))  # larger powers overflow
        self._limit("seed", SEED)
        self._limit("top_p", ABOVE_0_TO_1)
        if self.max_length:
            self._limit("min_length", _from_to(0, self.max_length))
        self._limit("min_p", _from_to(0, 1))
        self._require(self.temperature > 0, "temperature", "more than 0 (beam 1 is greedy search)")
        self._require(self.sample or self.n_best <= self.beam, "n_best", f"1 to the beam width ({self.beam})")
        divides = self.groups >= 1 and self.beam % self.groups == 0
        self._require(divides, "groups", f"1 or more, a divisor of the beam width ({self.beam})")
        # An option without effect is an error.
        if self.sample:
            self._require(not self.must, "must", "no words together with sample: beam search finds them")
            self._require(self.groups == 1, "groups", "1 together with sample, which needs no groups")
        for names, used, unless in (
            ("temperature top_k top_p min_p seed", self.sample, "sample is true"),
            ("diversity", self.groups > 1, "groups is 2 or more"),
        ):
            for name in names.split():
                default = getattr(SearchConfig, name)
                self._require(used or getattr(self, name) == default, name, f"{default} unless {unless}")

    def for_model(self, max_length: int) -> SearchConfig:
        """These options, with this `max_length` where they have none."""
        return self if self.max_length else replace(self, max_length=max_length)


@dataclass(frozen=True)
class ServeConfig(_Config):
    """The limits of captioner serve.

    Args:
        max_batch: images that are captioned together
        max_wait_ms: milliseconds that an idle model waits for more images
        queue: images that may wait; more are refused with status 503
        max_images: images in a request
        max_bytes: bytes of an image
        max_request: bytes of a request
        max_pixels: pixels of an image
        timeout: seconds from the first byte of a request to its answer
        max_beam: widest beam, and most captions of an image, that a request may ask for
        decoders: threads that decode images
        allow_urls: also fetch images from public http and https addresses
        access_log: print a line for each request
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    queue: int = 512
    max_images: int = 16
    max_bytes: int = 20_000_000
    max_request: int = 64_000_000
    max_pixels: int = 50_000_000
    timeout: float = 60.0
    max_beam: int = 20
    decoders: int = 4
    allow_urls: bool = False
    access_log: bool = False

    def _check(self) -> None:
        self._limit("max_batch queue max_images max_bytes max_request max_pixels max_beam decoders", AT_LEAST_1)
        self._limit("max_wait_ms", AT_LEAST_0)
        self._limit("timeout", POSITIVE)


@dataclass(frozen=True)
class TrainConfig(_Config, group="train."):
    """The optimisation.

    Args:
        objective: cross-entropy, or self-critical by CIDEr-D after it, with --init_from
        rollouts: captions of an image that are compared (scst)
        rollouts_by: they are samples, scored with dropout, or the beam, without dropout (docs/attention.md)
        baseline: subtracted from a reward: the mean of the image's other samples, or that of its greedy caption (scst)
        bleu_weight: weight of BLEU-4 (0 to 1) in the reward, beside CIDEr-D (0 to 10) (scst)
        epochs: maximum number of epochs; a resumed run may be given more
        lr: decoder's peak learning rate
        encoder_lr: peak learning rate of the encoder's trained stages (both by AdamW); 0 keeps them as --init-from has
            them
        encoder_lr_decay: factor on encoder_lr from each stage of the encoder to the one before it
        weight_decay: decoupled weight decay of weight matrices (not of biases, embeddings and norms)
        warmup: share of all steps in which the learning rate rises, before its cosine decay
        label_smoothing: probability spread over the whole vocabulary
        teachers: checkpoints whose mean distribution of each word is learned beside the captions (distillation);
            --train.teachers+ adds one
        teacher_weight: share of that distribution in the target of a word; the rest is the word of the caption
        clip_norm: gradients are scaled down to this global norm (0 = never)
        ema_decay: decay per step of the moving average of the weights that is validated and saved (0 = none)
        start_weight: share of the weights of --init-from in the model that is saved for use, which keeps what they
            know; auto is the largest with which the validation captions are not significantly worse
        patience: epochs without a better val_cider before training stops (0 = never)
        keep: number of checkpoints, of the epochs with the best val_cider, that stay in kept/ to be averaged
        checkpoint_minutes: minutes between writes of last.ckpt within an epoch; it is also written after each epoch
        samples: number of validation images whose captions are logged at each validation
        seed: seed of the initial weights, the order of the captions and the dropout
    """

    objective: Literal["xe", "scst"] = "xe"
    rollouts: int = 5
    rollouts_by: Literal["sample", "beam"] = "sample"
    baseline: Literal["others", "greedy"] = "others"
    bleu_weight: float = 0.0
    epochs: int = 12
    lr: float = 3e-3
    encoder_lr: float = 2e-5
    encoder_lr_decay: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.1
    label_smoothing: float = 0.1
    teachers: str | list[str] | None = None
    teacher_weight: float = 0.5
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    start_weight: float | Literal["auto"] = 0.0
    patience: int = 5
    keep: int = 0
    checkpoint_minutes: float = 10.0
    samples: int = 6
    seed: int = 0

    def _check(self) -> None:
        least = 2 if self.baseline == "others" else 1
        self._require(self.rollouts >= least, "rollouts", f"{least} or more with {self.baseline} baseline")
        self._limit("epochs", AT_LEAST_1)
        self._limit("bleu_weight weight_decay clip_norm patience keep samples", AT_LEAST_0)
        self._limit("lr checkpoint_minutes", POSITIVE)
        self._limit("encoder_lr", AT_LEAST_0)
        self._limit("encoder_lr_decay", ABOVE_0_TO_1)
        self._limit("warmup label_smoothing ema_decay", BELOW_1)
        share = self.start_weight
        good = share == "auto" or (isinstance(share, Real) and BELOW_1[0](share))
        self._require(good, "start_weight", f"auto, or {BELOW_1[1]}")
        self._limit("teacher_weight", ABOVE_0_TO_1)
        self._require(self.teachers is None or self.objective == "xe", "teachers", "none with objective scst")
        self._limit("seed", SEED)

    @property
    def teacher_files(self) -> list[str]:
        """The checkpoints of `teachers`, none or more."""
        return _as_list(self.teachers or [])


@dataclass(frozen=True)
class TrainerConfig(_Config, group="trainer."):
    """Options of Lightning's Trainer.

    Args:
        accelerator: auto is the GPU (CUDA) if there is one, else the CPU; mps is untested
        devices: number of GPUs, or of processes on a CPU, on each machine; they share every batch of data.batch_size
        num_nodes: number of machines
        strategy: of several devices; auto is ddp
        precision: auto is bf16-mixed on a GPU with bf16 units or a CPU with AMX or AVX-512 BF16, 16-mixed on other
            GPUs, else 32-true
        accumulate_grad_batches: batches per optimiser step
        check_val_every_n_epoch: epochs between validations
        log_every_n_steps: steps between lines of the logs
    """

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int = 1
    log_every_n_steps: int = 10

    def _check(self) -> None:
        self._limit("devices num_nodes accumulate_grad_batches check_val_every_n_epoch log_every_n_steps", AT_LEAST_1)
