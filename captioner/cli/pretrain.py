"""Train the decoder as a language model, on text alone; captioner train --init-from then begins with its weights.

Example: captioner pretrain --data.text captions_train.json --output runs/lm
"""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from captioner.cli.train import begin, choose_precision, fit, last_checkpoint, locked, quiet
from captioner.config import ModelConfig, TextConfig, TrainConfig, TrainerConfig
from captioner.errors import UserError

# The options that mean something without images.
GROUPS: dict[str, tuple[type, tuple[str, ...]]] = {
    "data": (TextConfig, tuple(field.name for field in fields(TextConfig))),
    "model": (
        ModelConfig,
        ("cell", "layers", "hidden_size", "embedding_size", "dropout", "input_dropout", "tie_embeddings"),
    ),
    "train": (TrainConfig, ("epochs", "lr", "weight_decay", "warmup", "clip_norm", "samples", "seed")),
    "trainer": (TrainerConfig, ("accelerator", "precision", "log_every_n_steps")),
}

MAIN = """
config output resume data.text data.val_text data.level data.lines data.tbptt_steps model.cell model.layers
model.hidden_size train.epochs train.lr
"""


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("--config", action="config", help="YAML file of options; typed ones override it")
    parser.add_argument("--output", type=str, default="runs/lm", help="folder of the run")
    parser.add_argument(
        "--resume", type=bool, default=False, help="go on with the run in --output from its last whole epoch"
    )
    for name, (config, kept) in GROUPS.items():
        parser.add_class_arguments(config, name, skip={field.name for field in fields(config)} - set(kept))


def run(options: Any) -> int:
    """Train, or go on training; see the module's docstring."""
    with locked(Path(options.output)) as folder:
        return pretrain(options, folder)


def pretrain(options: Any, folder: Path) -> int:
    """Train in a folder."""
    if options.data.text is None:
        raise UserError("--data.text (a text file, or a captions JSON) is needed")
    settings = {
        name: {key: value for key, value in asdict(options[name]).items() if key in kept}
        for name, (_, kept) in GROUPS.items()
    }

    from captioner.data import text_stream as text
    from captioner.data.vocabulary import SPECIAL, UNK, Vocabulary

    data = options.data
    train = text.read_corpus(Path(data.text))
    if data.val_text is None:
        train, val = text.hold_out(train, data.val_share)
    else:
        val = text.read_corpus(Path(data.val_text))
    vocabulary = Vocabulary.build(text.pieces(train, data.lines), data.min_count, data.level)
    if len(vocabulary) <= len(SPECIAL):
        raise UserError(f"no {data.level} of {data.text} is seen {data.min_count} times: lower --data.min_count")
    unknown = [word for word in vocabulary.split(data.prompt) if word not in vocabulary.ids]
    if unknown:
        raise UserError(f"--data.prompt: {unknown[0]!r} is not in the vocabulary of {data.text}")
    ids = {name: text.encode(part, vocabulary, data.lines) for name, part in (("train", train), ("val", val))}
    if len(ids["val"]) < 2:
        raise UserError(
            f"nothing of {data.text} is left for validation: --data.val_share or --data.val_text gives more"
        )
    resumed = begin(folder, settings, options.resume)

    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
    from torch.utils.data import DataLoader

    from captioner.models.checkpoint import read_checkpoint, save_slim
    from captioner.models.language_model import LanguageModel, language_model_weights
    from captioner.training.callbacks import WholeCheckpoints
    from captioner.training.language_task import LanguageTask, TextSamples

    quiet()
    torch.set_float32_matmul_precision("high")
    trainer_options = {**settings["trainer"], "devices": 1}
    if trainer_options["precision"] == "auto":
        trainer_options["precision"] = choose_precision(trainer_options["accelerator"])
    pl.seed_everything(options.train.seed, verbose=False)
    model = LanguageModel(options.model, vocabulary)
    streams = {name: text.Streams(part, data.batch_size, data.tbptt_steps) for name, part in ids.items()}
    loaders = {name: DataLoader(part, batch_size=None) for name, part in streams.items()}
    last: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    version = f"part_{sum(1 for _ in folder.glob('logs/part_*'))}"  # a resumed run adds a part
    trainer = pl.Trainer(
        **trainer_options,
        callbacks=[
            TextSamples(folder, options.train.samples, data),
            ModelCheckpoint(**last, filename="best", monitor="val_loss"),
            ModelCheckpoint(**last, filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
        ],
        plugins=[WholeCheckpoints()],
        max_epochs=options.train.epochs,
        logger=[CSVLogger(folder, "logs", version), TensorBoardLogger(folder, "logs", version)],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    share = 100 * float((ids["train"] == UNK).float().mean())
    kinds = "words" if data.level == "word" else "characters"
    print(
        f"{len(ids['train']):,} tokens in {len(streams['train'].inputs):,} streams, {share:.2g} % of them unknown, "
        f"{len(ids['val']):,} for validation, {len(vocabulary):,} {kinds}, {len(streams['train']):,} chunks an epoch "
        f"on {trainer.strategy.root_device}"
    )
    task = LanguageTask(model, options.train, len(streams["train"]) * options.train.epochs)
    if resumed:
        last_checkpoint(folder)
    fit(trainer, task, folder, resumed, loaders["train"], loaders["val"])

    slim = folder / "lm.safetensors"
    header, weights = read_checkpoint(folder / "best.ckpt")
    save_slim(slim, header, language_model_weights(weights))
    print(
        f"Done: {folder} has best.ckpt, last.ckpt, samples.md, logs/ and {slim.name}, the best model; "
        f"try: captioner train --init-from {slim} with the same --model options"
    )
    return 0
