"""Train the decoder as a language model, on text alone, to initialise captioner train --init-from.

Example: captioner pretrain --data.text captions_train.json --output runs/lm
"""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from captioner.cli.options import add_run_arguments, check_resumed
from captioner.config import ModelConfig, TextConfig, TrainConfig, TrainerConfig
from captioner.errors import UserError, counted
from captioner.models.checkpoint import LANGUAGE_OPTIONS

# The options that a training without images has.
GROUPS: dict[str, tuple[type, tuple[str, ...]]] = {
    "data": (TextConfig, tuple(field.name for field in fields(TextConfig))),
    "model": (ModelConfig, LANGUAGE_OPTIONS),
    "train": (TrainConfig, ("epochs", "lr", "weight_decay", "warmup", "clip_norm", "samples", "seed")),
    "trainer": (TrainerConfig, ("accelerator", "precision", "log_every_n_steps")),
}

MAIN = """
config output resume data.text data.val_text data.level data.lines data.tbptt_steps model.cell model.layers
model.hidden_size train.epochs train.lr
"""

READS = "data.text data.val_text"
WRITES = "output"


def configure(parser: Any) -> None:
    """Declare the options."""
    add_run_arguments(parser, "runs/lm")
    for name, (config, kept) in GROUPS.items():
        parser.add_class_arguments(config, name, skip={field.name for field in fields(config)} - set(kept))


def run(options: Any) -> None:
    """Train, or resume training; see the module's docstring."""
    check_resumed(options, "data.text")
    if options.data.text is None:
        raise UserError("--data.text (a text file, or a captions JSON) is needed")
    from captioner.training.run import lock_folder, resolve_trainer

    trainer_options = resolve_trainer(options.trainer)
    with lock_folder(Path(options.output), "pretrain") as folder:
        _pretrain(options, folder, trainer_options)


def _pretrain(options: Any, folder: Path, trainer_options: dict[str, Any]) -> None:
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    from captioner.data.text_stream import Streams
    from captioner.data.vocabulary import UNK
    from captioner.models.language_model import LanguageModel, language_model_weights
    from captioner.training.callbacks import Monitor, best_and_last
    from captioner.training.language_task import LanguageTask, TextSamples
    from captioner.training.run import configure_process, export_best, find_run, fit, make_trainer, write_config

    settings = {name: {key: getattr(options[name], key) for key in kept} for name, (_, kept) in GROUPS.items()}
    vocabulary, train_ids, val_ids = _encode_text(options.data)
    resumed = find_run(folder, settings, options.resume)
    if not resumed:
        write_config(folder, settings)
    configure_process()
    data, config = options.data, options.train
    pl.seed_everything(config.seed, verbose=False)
    model = LanguageModel(options.model, vocabulary)
    train, val = (Streams(ids, data.batch_size, data.tbptt_steps) for ids in (train_ids, val_ids))
    callbacks = [TextSamples(folder, config.samples, data), *best_and_last(folder, Monitor("val_loss", "min"))]
    trainer = make_trainer(folder, config.epochs, callbacks, trainer_options)
    unknown = 100 * float((train_ids == UNK).float().mean())
    tokens, streams = counted(len(train_ids), "token"), counted(len(train.inputs), "stream")
    print(f"{tokens} in {streams}, {unknown:.2g} % of them unknown, {len(val_ids):,} for validation")
    words = counted(len(vocabulary), "word" if data.level == "word" else "character")
    where = f"on {trainer_options['accelerator']} in {trainer_options['precision']}"
    print(f"{words}, {counted(len(train), 'chunk')} an epoch {where}")
    loaders = [DataLoader(streams, batch_size=None) for streams in (train, val)]
    fit(trainer, LanguageTask(model, config, len(train) * config.epochs), folder, resumed, *loaders)
    slim = export_best(folder, "lm.safetensors", language_model_weights)
    print(f"Done: {slim} is the best model")
    print(f"try: captioner train --init-from {shlex.quote(str(slim))}")
    print("beside it: best.ckpt, last.ckpt, samples.md and logs/")


def _encode_text(data: TextConfig) -> tuple[Any, Any, Any]:
    """Vocabulary, and ids (N,) of the training and the validation text."""
    from captioner.data.text_stream import encode_text, hold_out, read_corpus
    from captioner.data.vocabulary import SPECIAL, Vocabulary

    assert data.text is not None, "run has checked it"
    train = read_corpus(Path(data.text))
    if data.val_text is None:
        train, val = hold_out(train, data.val_share)
    else:
        val = read_corpus(Path(data.val_text))
    sequences = train.split("\n") if data.lines else [train]  # a line break between lines is no token
    vocabulary = Vocabulary.build(sequences, data.min_count, data.level)
    if len(vocabulary) <= len(SPECIAL):
        raise UserError(f"no {data.level} of {data.text} is seen {data.min_count} times: lower --data.min_count")
    unknown = [word for word in vocabulary.split(data.prompt) if word not in vocabulary.ids]
    if unknown:
        raise UserError(f"--data.prompt: {unknown[0]!r} is not in the vocabulary of {data.text}")
    train_ids, val_ids = (encode_text(part, vocabulary, data.lines) for part in (train, val))
    if len(val_ids) < 2:
        raise UserError(f"nothing of {data.text} is left for validation: raise --data.val_share or use --data.val_text")
    return vocabulary, train_ids, val_ids
