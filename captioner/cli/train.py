"""Train a model on captioned images, in any format of docs/data.md.

Example: captioner train --config flickr8k --data.train train.json --data.train_images train --data.val val.json
--data.val_images val
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from captioner import progress
from captioner.cli.options import add_run_arguments, check_resumed
from captioner.config import VOCABULARIES, DataConfig, ModelConfig, SearchConfig, TrainConfig, TrainerConfig
from captioner.errors import UserError, counted
from captioner.models.checkpoint import inherited_options, read_header, resolve_checkpoint

GROUPS = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "trainer": TrainerConfig,
}

MAIN = """
config output resume check init_from data.train data.train_images data.val data.val_images model.encoder model.attention
model.cell model.layers train.objective train.epochs train.lr
"""

CHECKPOINTS = "train.teachers"
READS = "data.train data.train_images data.train_list data.val data.val_images data.val_list"
WRITES = "output"
NEEDS = {
    "train.rollouts train.rollouts_by train.baseline train.bleu_weight": "--train.objective scst",
    "train.teacher_weight": "--train.teachers",
    "train.encoder_lr train.encoder_lr_decay": "--model.trainable_layers",
    "data.flip_words": "--data.horizontal_flip",
}


def configure(parser: Any) -> None:
    """Declare the options."""
    add_run_arguments(parser, "runs/captioner")
    parser.add_argument("--check", type=bool, default=False, help="dry run: estimate time, memory and disk space")
    parser.add_argument("--init_from", type=str, help="checkpoint to begin with, or shipped")
    for name, config in GROUPS.items():
        parser.add_class_arguments(config, name)


def base(options: Any) -> dict[str, Any]:
    """The options of the checkpoint of ``--init-from``, which hold where none are given; a resumed run has its own."""
    if options.data.vocabulary not in VOCABULARIES:
        resolve_checkpoint(options.data.vocabulary)
    return inherited_options(options.init_from) if options.init_from is not None else {}


def run(options: Any) -> None:
    """Train, or resume training; see the module's docstring."""
    if options.model.custom_encoder:
        raise UserError(
            f"model.encoder is {options.model.encoder}: a custom encoder is trained from Python, docs/extend.md"
        )
    if options.check and options.resume:
        raise UserError("--check is for a training that has not started: leave out --resume")
    if options.search.n_best > 1 and not options.search.sample:
        raise UserError(f"search.n_best is {options.search.n_best}: expected 1, a validation scores the best caption")
    check_resumed(options, "data.train")
    for name in ("train", "val"):
        options.data.sets(name)  # an error if they are missing
    if options.data.vocabulary == "extend" and options.init_from is None:
        raise UserError("--data.vocabulary extend needs the checkpoint whose vocabulary is extended: --init-from")
    if options.train.start_weight and options.init_from is None:
        raise UserError("--train.start_weight needs the checkpoint whose weights they are: --init-from")
    from captioner.training.run import lock_folder, resolve_trainer, scratch_folder

    trainer_options, out = resolve_trainer(options.trainer), Path(options.output)
    # The scratch folder is on the same disk.
    with scratch_folder(Path(f"{out}.check")) if options.check else lock_folder(out, "train") as folder:
        _train(options, folder, trainer_options)


def _train(options: Any, folder: Path, trainer_options: dict[str, Any]) -> None:
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from captioner.training.callbacks import make_callbacks
    from captioner.training.checks import DryRun, SanityChecks
    from captioner.training.run import describe_trainer, export_best, fit, make_trainer
    from captioner.training.start_weight import StartWeights, keep_share
    from captioner.training.task import CaptionTask, load_teachers

    data, model, resumed = _begin(options, folder, trainer_options["accelerator"])
    config = options.train
    rank_zero_only(print)(describe_trainer(trainer_options, options.data.batch_size))
    references = data.references()
    callbacks = [*make_callbacks(folder, config, data.val.examples, _monitor(data, references)), SanityChecks(data)]
    dry_run = DryRun(max(2, trainer_options["accumulate_grad_batches"]))
    start = StartWeights()
    if config.start_weight:
        callbacks.append(start)
    if options.check:
        callbacks.append(dry_run)
        trainer_options |= {"limit_val_batches": 2, "check_val_every_n_epoch": 1}
    trainer = make_trainer(folder, config.epochs, callbacks, trainer_options)
    batches = len(data.train_sampler(world=trainer.world_size))
    steps = -(-batches // trainer.accumulate_grad_batches) * config.epochs
    if options.init_from and not resumed:
        _copy_weights(options, model)
    teachers = load_teachers(model, config.teacher_files, data.encoder)
    rewards = data.rewards(config.bleu_weight) if config.objective == "scst" else None
    task = CaptionTask(model, config, options.search, references, steps, rewards, teachers)
    rank_zero_only(_describe)(data, task, batches)
    fit(trainer, task, folder, resumed, data)
    if not trainer.is_global_zero:
        return

    def select(found: dict[str, Any]) -> dict[str, Any]:
        trained = {name: found[name] for name in model.weights()}
        if options.check or not config.start_weight:
            return trained
        return keep_share(task, data, trainer.strategy.root_device, trained, start.weights)

    slim = export_best(folder, "captioner.safetensors", select)
    if options.check:
        type(model).load(slim)
        print(dry_run.report(trainer, data, batches, options.trainer.check_val_every_n_epoch, folder))
        print(f"checked: training, validation and checkpoints work; {options.output} is unchanged")
    else:
        print(f"Done: {slim} is the best model, for use")
        print(f"try: captioner predict PHOTO.jpg --checkpoint {shlex.quote(str(slim))}")
        print("beside it: best.ckpt, last.ckpt, samples.md and logs/")


def _monitor(data: Any, references: list[list[list[str]]]) -> Any:
    """What the best epoch is chosen by: val_cider, or val_loss and a warning where that cannot move."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from captioner.training.callbacks import Monitor

    reason = data.fixed_cider(references)
    if not reason:
        return Monitor()
    warning = f"val_cider stays 0: {reason}; best.ckpt is the epoch with the lowest val_loss"
    rank_zero_only(progress.warn)(f"captioner train: warning: {warning}")
    return Monitor("val_loss", "min")


def _describe(data: Any, task: Any, batches: int) -> None:
    """Print what is trained, and on what."""
    images, val_images = (counted(len(split.examples), "image") for split in (data.train, data.val))
    captions, words = counted(len(data.train_set.lengths), "caption"), counted(len(data.vocabulary), "word")
    trained = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
    print(f"{captions} of {images}, {words}; {val_images} for validation")
    print(f"{counted(trained, 'trained parameter')}, {counted(batches, 'batch')} an epoch")
    for line in data.notes():
        print(line)


def _copy_weights(options: Any, model: Any) -> None:
    """Initialise `model` by ``--init-from``, and print what came from there."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from captioner.models.init_from import describe_options, init_from

    for line in [
        *describe_options(options.model, options.init_from, options.given),
        init_from(model, options.init_from),
    ]:
        rank_zero_only(print)(line)


def _begin(options: Any, folder: Path, device: str) -> tuple[Any, Any, bool]:
    """The data module, a new model, and whether a run is resumed; config.yaml of a new run is written."""
    from captioner.training.run import find_run, write_config

    resumed = find_run(folder, {name: asdict(options[name]) for name in GROUPS}, options.resume)
    if not resumed:
        _check_start(options)
    data, model = _data_and_model(options, device, folder / "last.ckpt" if resumed else None)
    if not resumed:
        _choose_for_small_set(options, data)
        settings = {name: asdict(options[name]) for name in GROUPS}
        write_config(folder, {**settings, "init_from": options.init_from})
    return data, model, resumed


def _data_and_model(options: Any, device: str, last: Path | None) -> tuple[Any, Any]:
    """The data module, with its cached features checked, and a new model; `last` is the checkpoint of a resumed run."""
    import pytorch_lightning as pl
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from captioner.models.captioner import Captioner
    from captioner.models.encoder import Encoder
    from captioner.training.datamodule import CaptionData
    from captioner.training.run import configure_process
    from captioner.training.task import new_model

    configure_process()
    by_image, seed = options.train.objective == "scst", options.train.seed
    config, frozen, start = options.model, None, last or options.init_from
    if config.trainable_layers and options.train.encoder_lr == 0 and not options.data.augment:
        # The fine-tuned stages stay as they are, and features are cached.
        frozen = Captioner.load(start).encoder if start else Encoder(config)
        assert frozen is not None
        frozen.freeze()
        config = replace(config, trainable_layers=0)
    words = options.data if last is None else replace(options.data, vocabulary="keep")  # of the run itself
    data = CaptionData(words, config, seed, by_image, options.check, device, frozen, start)
    rank_zero_only(data.check_features)()
    pl.seed_everything(seed, verbose=False)
    return data, new_model(data, options.model)


def _check_start(options: Any) -> None:
    """UserError if self-critical training does not begin with a trained model."""
    from captioner.models.init_from import check_same_model

    if options.train.objective == "scst":
        if options.init_from is None:
            raise UserError("train.objective scst goes on from a trained model: name its checkpoint by --init-from")
        check_same_model(options.model, options.init_from)


def _choose_for_small_set(options: Any, data: Any) -> None:
    """Give options that were not given values for few captions, and say so."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from captioner.training.small_sets import small_set_options

    captions, start = len(data.train_set.lengths), options.init_from
    fine_tuning = start is not None and read_header(start).get("kind") != "language_model"
    given = {"batch_size": options.data.batch_size, "epochs": options.train.epochs}
    given = {name: value for name, value in given.items() if {f"data.{name}", f"train.{name}"} & options.given}
    chosen = small_set_options(captions, fine_tuning, **given) if options.train.objective == "xe" else {}
    chosen = {name: value for name, value in chosen.items() if name not in options.given}
    for name, value in chosen.items():
        group, _, option = name.partition(".")
        options[group] = replace(options[group], **{option: value})
    data.data = options.data
    if chosen:
        values = " ".join(f"--{name} {value}" for name, value in chosen.items())
        rank_zero_only(print)(f"chosen for {counted(captions, 'caption')}: {values}")
