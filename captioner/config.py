"""Every default, once: frozen dataclasses of plain values, checked where they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from captioner.errors import UserError

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_v1")
IMAGES = 32  # encoded together, outside training


def _require(holds: bool, option: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{option} is {value!r}: expected {expected}")


def _encoders_like(name: str) -> str | None:
    """What was expected instead; None for a name that torchvision has, or that timm will be asked about."""
    if name in ENCODERS or re.fullmatch(r"timm:[\w.]+", name):
        return None
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    close = ", ".join(get_close_matches(name, [*names, *ENCODERS], 4, 0.4)) or "convnext_tiny, vit_b_16"
    return None if name in names else f"resnet50_v1, a model of torchvision such as {close}, or timm:NAME"


@dataclass(frozen=True)
class ModelConfig:
    """The architecture; stored in every checkpoint.

    Args:
        encoder: resnet50_v1, the ImageNet ResNet-50 that ships in checkpoints/; any classification model of
            torchvision by its name, such as resnet101, convnext_tiny or vit_b_16; or timm:NAME, one of timm's; with
            their ImageNet weights
        image_size: side in pixels of the square the whole image is resized to
        second_size: a second, smaller side at which the encoder looks at the image again; the two features are
            concatenated (0 = one look)
        trainable_layers: how many of the encoder's last stages are fine-tuned (0 = frozen; 5 = all of a ResNet)
        grid: the image is seen as grid × grid cells, each with a feature, for attention or beside each other in a
            frame of a clip (0 = one feature, their mean)
        attention: how the decoder looks at the cells of the grid: soft (Show, Attend and Tell), adaptive (with a
            visual sentinel) or updown (two LSTMs); none needs no grid
        attention_size: size of the space in which the cells are compared with the state
        frames: up to so many frames of a clip or images of an album, evenly taken, get one caption together, by way
            of a recurrent network over their features (0 = a caption describes one image)
        cell: recurrent cell (rnn is the tanh RNN of the lecture)
        layers: recurrent layers, 1 to 5
        image_as: how the image enters the recurrent layers: at every_step (W_ih v, the lecture), as the first_word
            (Show and Tell) or as the initial_state
        hidden_size: size of the hidden state
        embedding_size: size of the word embeddings
        dropout: dropout rate before the output layer and between recurrent layers
        input_dropout: dropout rate on what enters the first recurrent layer, word and image
        feature_dropout: dropout rate on the image feature
        cell_dropout: share of the cells of its grid that an image is shown without, others each time, in training
        tie_embeddings: use the word embeddings as the output layer too (needs embedding_size = hidden_size)
    """

    encoder: str = "resnet50_v1"
    image_size: int = 288
    second_size: int = 224
    trainable_layers: int = 0
    grid: int = 0
    attention: Literal["none", "soft", "adaptive", "updown"] = "none"
    attention_size: int = 256
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

    def __post_init__(self) -> None:
        like = _encoders_like(self.encoder)
        _require(like is None, "model.encoder", self.encoder, like or "")
        _require(32 <= self.image_size <= 1024, "model.image_size", self.image_size, "32 to 1024 pixels")
        smaller = self.second_size == 0 or 32 <= self.second_size < self.image_size
        expected = f"0, or 32 to below image_size ({self.image_size})"
        _require(smaller, "model.second_size", self.second_size, expected)
        most = 5 if self.encoder in ENCODERS else 100  # the encoder knows how many stages it has
        _require(0 <= self.trainable_layers <= most, "model.trainable_layers", self.trainable_layers, f"0 to {most}")
        _require(0 <= self.grid <= 64, "model.grid", self.grid, "0 to 64")
        kinds = ("none", "soft", "adaptive", "updown")
        _require(self.attention in kinds, "model.attention", self.attention, f"one of {', '.join(kinds)}")
        looks, sees = self.attention != "none", self.grid > 0
        _require(looks or not sees or self.frames > 0, "model.grid", self.grid, "0 without attention or frames")
        _require(sees or not looks, "model.grid", self.grid, f"1 or more, such as 7, for {self.attention} attention")
        _require(sees or not self.cell_dropout, "model.cell_dropout", self.cell_dropout, "0 without a grid")
        _require(self.attention_size >= 1, "model.attention_size", self.attention_size, "1 or more")
        few = self.frames == 0 or 2 <= self.frames <= 256
        _require(few, "model.frames", self.frames, "0 (one image), or 2 to 256")
        _require(self.frames == 0 or not looks, "model.frames", self.frames, "0 with attention, which sees one image")
        _require(self.cell in ("rnn", "gru", "lstm"), "model.cell", self.cell, "rnn, gru or lstm")
        _require(1 <= self.layers <= 5, "model.layers", self.layers, "1 to 5")
        ways = ("every_step", "first_word", "initial_state")
        _require(self.image_as in ways, "model.image_as", self.image_as, "every_step, first_word or initial_state")
        plain = self.attention == "none" or (self.cell, self.layers, self.image_as) == ("lstm", 1, "every_step")
        _require(plain, "model.attention", self.attention, "none, unless cell is lstm, layers 1, image_as every_step")
        _require(self.hidden_size >= 1, "model.hidden_size", self.hidden_size, "1 or more")
        _require(self.embedding_size >= 1, "model.embedding_size", self.embedding_size, "1 or more")
        for name in ("dropout", "input_dropout", "feature_dropout", "cell_dropout"):
            rate = getattr(self, name)
            _require(0 <= rate < 1, f"model.{name}", rate, "0 up to, but not including, 1")
        _require(
            not self.tie_embeddings or self.embedding_size == self.hidden_size,
            "model.tie_embeddings",
            self.tie_embeddings,
            f"false, since embedding_size ({self.embedding_size}) and hidden_size ({self.hidden_size}) differ",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the images and captions are, and how they are batched.

    Args:
        train: the training captions in any layout of docs/data.md: COCO captions JSON, a table, a folder, shards …
        train_images: folder of the images; not needed where the layout says where they are
        train_split: which split, where the layout has several; train of Karpathy's is train and restval
        train_list: file with an image's name in each line, such as Flickr_8k.trainImages.txt: only these
        val: the validation captions, in the same way
        val_images: folder of their images
        val_split: which split
        val_list: file with the names of the images
        columns: IMAGE,CAPTION, the columns of a table where they have other than the usual names
        fraction: share of the training images to train on, chosen by train.seed
        level: word, or char: the captions are written letter by letter; max_length and search.max_length then
            count characters
        min_count: a training word seen less often becomes UNK
        vocabulary: checkpoint whose vocabulary is used, instead of counting the words of the training captions
        max_length: longer captions are cut to this many words
        batch_size: captions in a batch (in each process)
        skip_bad_images: count and skip missing or unreadable images and images without captions
            instead of stopping
        horizontal_flip: in each epoch train on half of the images as a mirror shows them, with left and right
            exchanged in their captions; the features of a frozen encoder then take twice the room
        feature_cache: folder of the features computed once with a frozen encoder
        feature_memory: features up to this many GiB are held in memory (on a GPU: in its memory), larger ones are
            read from the map batch by batch
        workers: processes that decode images (-1 = none on a CPU, up to 8 beside a GPU)
    """

    train: str | None = None
    train_images: str | None = None
    train_split: str = "train"
    train_list: str | None = None
    val: str | None = None
    val_images: str | None = None
    val_split: str = "val"
    val_list: str | None = None
    columns: str | None = None
    fraction: float = 1.0
    level: Literal["word", "char"] = "word"
    min_count: int = 4
    vocabulary: str | None = None
    max_length: int = 30
    batch_size: int = 256
    skip_bad_images: bool = False
    horizontal_flip: bool = False
    feature_cache: str = "features"
    feature_memory: float = 8.0
    workers: int = -1

    def __post_init__(self) -> None:
        _require(0 < self.fraction <= 1, "data.fraction", self.fraction, "more than 0, up to 1")
        _require(self.level in ("word", "char"), "data.level", self.level, "word or char")
        mirrors = self.level == "word" or not self.horizontal_flip
        _require(mirrors, "data.horizontal_flip", self.horizontal_flip, "false with data.level char")
        _require(self.min_count >= 1, "data.min_count", self.min_count, "1 or more")
        _require(self.max_length >= 1, "data.max_length", self.max_length, "1 or more")
        _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        _require(self.feature_memory >= 0, "data.feature_memory", self.feature_memory, "0 or more GiB")
        _require(self.workers >= -1, "data.workers", self.workers, "-1 (choose) or more")


@dataclass(frozen=True)
class TextConfig:
    """The text that the decoder is pre-trained on, and how it is cut.

    Args:
        text: text file (UTF-8), or a captions JSON, whose captions are the lines, shuffled
        val_text: the same for validation
        val_share: where there is no val_text, this share of the text, its end, is held out
        level: word, or char: character by character, as it is written
        lines: each line stands between START and END, as a caption does; without, the text is one long line
        min_count: a word seen less often becomes UNK
        tbptt_steps: tokens that gradients flow back through; the state is carried further
        batch_size: streams read side by side; fewer where they would be shorter than tbptt_steps
        prompt: what the samples begin with
        sample_tokens: most tokens in a sample
        temperature: of the samples; below 1 they keep closer to the likeliest text, 0 is that
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

    def __post_init__(self) -> None:
        _require(0 < self.val_share < 1, "data.val_share", self.val_share, "more than 0, less than 1")
        _require(self.level in ("word", "char"), "data.level", self.level, "word or char")
        _require(self.min_count >= 1, "data.min_count", self.min_count, "1 or more")
        _require(self.tbptt_steps >= 1, "data.tbptt_steps", self.tbptt_steps, "1 or more")
        _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "1 or more")
        _require(self.sample_tokens >= 1, "data.sample_tokens", self.sample_tokens, "1 or more")
        _require(self.temperature >= 0, "data.temperature", self.temperature, "0 or more")


@dataclass(frozen=True)
class SearchConfig:
    """How captions are searched for.

    Args:
        beam: beam width (1 = greedy)
        n_best: captions per image, best first; not more than the beam width unless they are sampled
        max_length: most words in a caption
        min_length: fewest words in a caption
        length_norm: what log-probabilities are divided by before captions are compared, gnmt: ((5 + length) / 6) **
            length_penalty; average: the length
        length_penalty: alpha of gnmt; 0 favours short captions
        no_repeat_ngram: no caption has the same so many words in a row twice (0 = it may)
        no_repeat_word: no word stands twice in a row
        no_bad_ending: no caption ends in an article, a conjunction and the like ("a man riding a")
        must: words that every caption has, in any order; the beam must be wider than they are many
        must_not: words that no caption has
        prefix: words that every caption begins with
        groups: the beam is divided into so many groups that avoid each other's words (diverse beam search)
        diversity: nats that a word costs each time a group before has taken it at the same step
        sample: draw the words instead of searching for the likeliest caption
        temperature: below 1 sampling keeps closer to the likeliest words, above 1 it strays
        top_k: sample among the k likeliest words (0 = all)
        top_p: sample among the likeliest words that together have this probability
        min_p: sample among words at least this share as probable as the likeliest
        seed: the same image with the same seed has the same sampled caption, whatever is beside it
    """

    beam: int = 5
    n_best: int = 1
    max_length: int = 20
    min_length: int = 1
    length_norm: Literal["gnmt", "average"] = "gnmt"
    length_penalty: float = 1.5
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

    def __post_init__(self) -> None:
        _require(self.beam >= 1, "beam", self.beam, "1 or more")
        _require(self.n_best >= 1, "n_best", self.n_best, "1 or more")
        narrow = self.sample or self.n_best <= self.beam
        _require(narrow, "n_best", self.n_best, f"1 to the beam width ({self.beam})")
        _require(self.max_length >= 1, "max_length", self.max_length, "1 or more")
        longest = f"0 to max_length ({self.max_length})"
        _require(0 <= self.min_length <= self.max_length, "min_length", self.min_length, longest)
        _require(self.length_norm in ("gnmt", "average"), "length_norm", self.length_norm, "gnmt or average")
        _require(self.length_penalty >= 0, "length_penalty", self.length_penalty, "0 or more")
        _require(self.no_repeat_ngram >= 0, "no_repeat_ngram", self.no_repeat_ngram, "0 or more")
        divides = self.groups >= 1 and self.beam % self.groups == 0
        _require(divides, "groups", self.groups, f"1 or more, a divisor of the beam width ({self.beam})")
        _require(self.diversity >= 0, "diversity", self.diversity, "0 or more")
        _require(self.temperature > 0, "temperature", self.temperature, "more than 0 (beam 1 is greedy search)")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 or more")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "more than 0, up to 1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "0 to 1")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        # An option that would do nothing is a mistake.
        if self.sample:
            _require(not self.must, "must", self.must, "no such words together with sample: beam search finds them")
            _require(self.groups == 1, "groups", self.groups, "1 together with sample, which needs no groups")
        for name in () if self.sample else ("temperature", "top_k", "top_p", "min_p", "seed"):
            value, default = getattr(self, name), getattr(SearchConfig, name)
            _require(value == default, name, value, f"{default} unless sample is true")
        if self.groups == 1:
            default = SearchConfig.diversity
            _require(self.diversity == default, "diversity", self.diversity, f"{default} unless groups is 2 or more")


@dataclass(frozen=True)
class ServeConfig:
    """The limits of captioner serve.

    Args:
        max_batch: images that are captioned together
        max_wait_ms: milliseconds that an idle model waits for more images
        queue: images that may wait; more are refused with 503
        max_images: in a request
        max_bytes: of an image
        max_request: bytes of a request
        max_pixels: of an image
        timeout: seconds for a request, from its first byte to the answer
        decoders: threads that decode images
        allow_urls: also fetch images from public http and https addresses
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    queue: int = 512
    max_images: int = 16
    max_bytes: int = 20_000_000
    max_request: int = 64_000_000
    max_pixels: int = 50_000_000
    timeout: float = 60.0
    decoders: int = 4
    allow_urls: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_images", "max_bytes", "max_request", "max_pixels", "decoders"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(self.max_wait_ms >= 0, "max_wait_ms", self.max_wait_ms, "0 or more")
        _require(self.timeout > 0, "timeout", self.timeout, "more than 0")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation.

    Args:
        objective: xe, cross-entropy with teacher forcing; or scst, self-critical training: captions are sampled and
            rewarded with CIDEr-D, from a model (--init_from) that xe has trained
        rollouts: captions sampled for an image in self-critical training
        baseline: what the reward of a sampled caption is compared with, others: the mean reward of the image's
            other samples; greedy: the reward of its greedy caption
        bleu_weight: BLEU-4 (0 to 1) times this is added to the reward, CIDEr-D (0 to 10)
        xe_weight: of the cross-entropy of the training captions in self-critical training
        epochs: most passes over the training captions
        lr: peak learning rate of the decoder (AdamW)
        encoder_lr: peak learning rate of the encoder's trainable stages
        encoder_lr_decay: the stage before the last has encoder_lr times this, the one before it that squared, and so on
        weight_decay: decoupled weight decay of weight matrices (not of biases, embeddings and norms)
        warmup: share of all steps over which the rate climbs before its cosine descent
        label_smoothing: probability spread over the whole vocabulary
        clip_norm: gradients are scaled down to this global norm (0 = never)
        ema_decay: decay per step of the moving average of the weights that is validated and saved (0 = none)
        patience: epochs without a better val_cider before training stops (0 = never)
        keep: so many of the checkpoints of the epochs, the best by val_cider, are kept in kept/ to be averaged
        checkpoint_minutes: last.ckpt is written after every epoch, and in mid-epoch this often
        samples: validation images whose captions are logged at each validation
        seed: of the initial weights, the order of the captions and the dropout
    """

    objective: Literal["xe", "scst"] = "xe"
    rollouts: int = 5
    baseline: Literal["others", "greedy"] = "others"
    bleu_weight: float = 0.0
    xe_weight: float = 0.0
    epochs: int = 12
    lr: float = 3e-3
    encoder_lr: float = 2e-5
    encoder_lr_decay: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.1
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    patience: int = 5
    keep: int = 0
    checkpoint_minutes: float = 10.0
    samples: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.objective in ("xe", "scst"), "train.objective", self.objective, "xe or scst")
        _require(self.baseline in ("others", "greedy"), "train.baseline", self.baseline, "others or greedy")
        least = 2 if self.baseline == "others" else 1
        _require(
            self.rollouts >= least, "train.rollouts", self.rollouts, f"{least} or more with {self.baseline} baseline"
        )
        _require(self.bleu_weight >= 0, "train.bleu_weight", self.bleu_weight, "0 or more")
        _require(self.xe_weight >= 0, "train.xe_weight", self.xe_weight, "0 or more")
        _require(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        _require(self.lr > 0, "train.lr", self.lr, "more than 0")
        _require(self.encoder_lr > 0, "train.encoder_lr", self.encoder_lr, "more than 0")
        _require(
            0 < self.encoder_lr_decay <= 1, "train.encoder_lr_decay", self.encoder_lr_decay, "more than 0, up to 1"
        )
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.warmup < 1, "train.warmup", self.warmup, "0 up to, but not including, 1")
        _require(0 <= self.label_smoothing < 1, "train.label_smoothing", self.label_smoothing, "0 to below 1")
        _require(self.clip_norm >= 0, "train.clip_norm", self.clip_norm, "0 or more")
        _require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "0 up to, but not including, 1")
        _require(self.patience >= 0, "train.patience", self.patience, "0 or more")
        _require(self.keep >= 0, "train.keep", self.keep, "0 or more")
        _require(self.checkpoint_minutes > 0, "train.checkpoint_minutes", self.checkpoint_minutes, "more than 0")
        _require(self.samples >= 0, "train.samples", self.samples, "0 or more")


@dataclass(frozen=True)
class TrainerConfig:
    """Passed to Lightning's Trainer as they are, but for precision=auto.

    Args:
        accelerator: auto, cpu, gpu, mps
        devices: how many devices, or auto
        num_nodes: machines
        strategy: auto, ddp, ddp_find_unused_parameters_true, fsdp
        precision: auto is bf16-mixed on a GPU that has it or a CPU with AMX, 16-mixed on another GPU, 32-true elsewhere
        accumulate_grad_batches: batches per optimiser step
        check_val_every_n_epoch: epochs from one validation to the next
        log_every_n_steps: steps between two lines of the logs
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int = 1
    log_every_n_steps: int = 10

    def __post_init__(self) -> None:
        kinds = ("auto", "32-true", "bf16-mixed", "16-mixed")
        _require(self.precision in kinds, "trainer.precision", self.precision, ", ".join(kinds))
