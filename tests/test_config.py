"""The defaults: valid, frozen, documented, and refused by name when they make no sense."""

import inspect
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest
import yaml
from helpers import NO_DROPOUT

from captioner.cli.parser import SHIPPED_CONFIGS
from captioner.config import DataConfig, ModelConfig, SearchConfig, TextConfig, TrainConfig, TrainerConfig
from captioner.errors import UserError

CONFIGS = (ModelConfig, DataConfig, TextConfig, SearchConfig, TrainConfig, TrainerConfig)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_is_documented_and_a_plain_value(config):
    made = config()
    for field in fields(config):
        assert f"\n    {field.name}: " in inspect.getdoc(config)
        assert isinstance(getattr(made, field.name), (str, int, float, bool, type(None)))
    assert config(**yaml.safe_load(yaml.safe_dump(asdict(made)))) == made


@pytest.mark.parametrize("config", CONFIGS)
def test_frozen(config):
    with pytest.raises(FrozenInstanceError):
        setattr(config(), fields(config)[0].name, 1)


@pytest.mark.parametrize(
    ("config", "name", "bad", "good"),
    [
        (ModelConfig, "model.encoder", ["vgg", ""], ["resnet18", "resnet50_v1"]),
        (ModelConfig, "model.image_size", [31, 1025], [300, 1024]),
        (ModelConfig, "model.second_size", [31, 5000], [0, 32]),
        (ModelConfig, "model.trainable_layers", [-1, 6], [0, 5]),
        (ModelConfig, "model.cell", ["LSTM", "transformer"], ["rnn", "gru", "lstm"]),
        (ModelConfig, "model.attention", ["hard"], ["none"]),
        (ModelConfig, "model.attention_size", [0], [1]),
        (ModelConfig, "model.grid", [-1, 65], [0]),
        (ModelConfig, "model.layers", [0, 6], [1, 5]),
        (TrainConfig, "train.objective", ["rl"], ["xe", "scst"]),
        (TrainConfig, "train.rollouts", [0, 1], [2]),
        (TrainConfig, "train.baseline", ["mean"], ["greedy"]),
        (TrainConfig, "train.bleu_weight", [-1.0], [0.0, 2.0]),
        (ModelConfig, "model.image_as", ["", "last_word"], ["every_step", "first_word", "initial_state"]),
        (ModelConfig, "model.hidden_size", [0], [1]),
        (ModelConfig, "model.embedding_size", [0], [1]),
        *((ModelConfig, f"model.{name}", [-0.1, 1.0, float("nan")], [0.0, 0.99]) for name in NO_DROPOUT),
        (DataConfig, "data.fraction", [0.0, 1.1, float("nan")], [0.001, 1.0]),
        (DataConfig, "data.level", ["letter"], ["word", "char"]),
        (DataConfig, "data.min_count", [0], [1]),
        (DataConfig, "data.max_length", [0], [1]),
        (DataConfig, "data.batch_size", [0], [1]),
        (DataConfig, "data.feature_memory", [-2.0, -0.5], [-1.0, 0.0]),
        (DataConfig, "data.workers", [-2], [-1, 0]),
        (TextConfig, "data.val_share", [0.0, 1.0], [0.001, 0.999]),
        (TextConfig, "data.level", ["letter"], ["word", "char"]),
        (TextConfig, "data.min_count", [0], [1]),
        (TextConfig, "data.tbptt_steps", [0], [1]),
        (TextConfig, "data.batch_size", [0], [1]),
        (TextConfig, "data.sample_tokens", [0], [1]),
        (TextConfig, "data.temperature", [-0.1], [0.0]),
        (SearchConfig, "beam", [0], [1]),
        (SearchConfig, "n_best", [0, 6], [1, 5]),
        (SearchConfig, "length_penalty", [-0.1], [0.0]),
        (SearchConfig, "max_length", [-1], [0, 1]),
        (SearchConfig, "min_length", [-1], [0, 20]),
        (SearchConfig, "length_norm", ["none"], ["gnmt", "average"]),
        (SearchConfig, "no_repeat_ngram", [-1], [0, 1]),
        (SearchConfig, "groups", [0, 2, 10], [1, 5]),
        (TrainConfig, "train.epochs", [0], [1]),
        (TrainConfig, "train.lr", [0.0, -1.0], [1e-9]),
        (TrainConfig, "train.encoder_lr", [-1e-9], [0.0, 1e-9]),
        (TrainConfig, "train.encoder_lr_decay", [0.0, 1.1], [0.5, 1.0]),
        (TrainConfig, "train.keep", [-1], [3]),
        (TrainConfig, "train.weight_decay", [-0.1], [0.0]),
        (TrainConfig, "train.warmup", [-0.1, 1.0], [0.0, 0.9]),
        (TrainConfig, "train.label_smoothing", [-0.1, 1.0], [0.0, 0.9]),
        (TrainConfig, "train.start_weight", [-0.1, 1.0, "most"], [0.0, 0.9, "auto"]),
        (TrainConfig, "train.seed", [-1, 2**32, 2**64], [0, 2**32 - 1]),
        (SearchConfig, "seed", [-1, 2**64], [0]),
        (TrainerConfig, "trainer.accelerator", ["tpu", "cuda:1"], ["auto", "cpu", "gpu", "mps"]),
        *((TrainerConfig, f"trainer.{name}", [0, -1], [1, 8]) for name in ("devices", "num_nodes")),
        *((TrainerConfig, f"trainer.{name}_batches", [0], [1]) for name in ("accumulate_grad",)),
        (TrainConfig, "train.clip_norm", [-1.0], [0.0]),
        (TrainConfig, "train.ema_decay", [-0.1, 1.0], [0.0, 0.999]),
        (TrainConfig, "train.patience", [-1], [0]),
        (TrainConfig, "train.checkpoint_minutes", [0.0], [0.01]),
        (TrainConfig, "train.samples", [-1], [0]),
    ],
)
def test_limits(config, name, bad, good):
    field = name.split(".")[-1]
    for value in good:
        config(**{field: value})
    for value in bad:
        with pytest.raises(UserError, match=rf"^{name} is {value!r}: expected [^\n]+$"):
            config(**{field: value})


@pytest.mark.parametrize("name", ["lr", "encoder_lr", "weight_decay", "clip_norm", "checkpoint_minutes"])
def test_not_a_number_is_refused(name):
    with pytest.raises(UserError, match=f"train.{name} is nan"):
        TrainConfig(**{name: float("nan")})


@pytest.mark.parametrize(
    ("config", "name"), [(ModelConfig, "encoder"), (ModelConfig, "layers"), (DataConfig, "level"), (TrainConfig, "lr")]
)
def test_none_is_refused(config, name):
    """A null of a config file."""
    with pytest.raises(UserError, match=f"{name} is None: expected "):
        config(**{name: None})


def test_tied_embeddings_need_equal_sizes():
    assert ModelConfig(tie_embeddings=True, embedding_size=256, hidden_size=256).tie_embeddings
    with pytest.raises(UserError, match=r"model\.tie_embeddings is True: .*256.*512"):
        ModelConfig(tie_embeddings=True, embedding_size=256, hidden_size=512)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("n_best", [0], [1, 50]),
        ("temperature", [0.0, -1.0], [0.01, 5.0]),
        ("top_k", [-1], [0, 1]),
        ("top_p", [0.0, 1.1], [0.01, 1.0]),
        ("min_p", [-0.1, 1.1], [0.0, 1.0]),
        ("seed", [-1], [0, 7]),
        ("must", ["dog"], [""]),
        ("groups", [5], [1]),
    ],
)
def test_limits_of_sampling(name, bad, good):
    for value in good:
        SearchConfig(sample=True, **{name: value})
    for value in bad:
        with pytest.raises(UserError, match=f"^{name} is {value!r}: expected "):
            SearchConfig(sample=True, **{name: value})


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        *(
            ({name: value}, f"{name} is {value!r}: expected .* unless sample is true")
            for name, value in [("temperature", 0.5), ("top_k", 5), ("top_p", 0.5), ("min_p", 0.5), ("seed", 3)]
        ),
        ({"diversity": 2.0}, "diversity is 2.0: expected 0.5 unless groups is 2 or more"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, parts):
    with pytest.raises(UserError, match=parts):
        SearchConfig(**options)


def test_attention_and_its_grid_belong_together():
    for options in ({"grid": 7}, {"attention": "soft"}):
        with pytest.raises(UserError, match=r"model\.grid is (7|0): expected"):
            ModelConfig(**options)
    for options in ({"cell": "gru"}, {"layers": 2}, {"image_as": "first_word"}):
        with pytest.raises(UserError, match=r"model\.attention is 'updown': expected none, unless cell is lstm"):
            ModelConfig(grid=7, attention="updown", **options)
    with pytest.raises(UserError, match=r"model\.cell_dropout is 0\.5: expected 0 without a grid"):
        ModelConfig(cell_dropout=0.5)
    for kind in ("soft", "adaptive", "updown"):
        assert ModelConfig(grid=7, attention=kind).attention == kind


@pytest.mark.parametrize("file", sorted(SHIPPED_CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_file_of_configs_is_valid(cli, file):
    command = "pretrain" if file.stem == "language_model" else "train"
    assert cli(command, "--config", file, "--print_config")[::2] == (0, "")


def test_the_defaults_that_configs_name_are_the_defaults():
    plain = yaml.safe_load((SHIPPED_CONFIGS / "flickr8k.yaml").read_text())
    configs = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig, "search": SearchConfig}
    for group, config in configs.items():
        assert asdict(config()).items() >= plain[group].items()


def test_a_config_is_found_by_its_name_and_a_file_of_that_name_wins(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few_pairs").mkdir()  # a folder is no config
    options = ("train", "--config", "few_pairs", "--print_config")
    assert yaml.safe_load(cli(*options)[1])["model"]["hidden_size"] == 256
    Path("few_pairs").rmdir()
    Path("few_pairs").write_text("model: {hidden_size: 9}")
    assert yaml.safe_load(cli(*options)[1])["model"]["hidden_size"] == 9


def test_self_critical_training_is_a_second_file(cli):
    """It has no architecture, and keeps that of the file before it."""
    code, out, _ = cli("train", "--config", "attention", "--config", "scst", "--print_config")
    made = yaml.safe_load(out)
    assert (code, made["model"]["attention"], made["train"]["objective"]) == (0, "soft", "scst")


ROWS = sorted((SHIPPED_CONFIGS / "recurrence").glob("*.yaml"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.stem)
def test_each_row_of_the_recurrence_table_is_a_config(cli, row):
    """What the file parts is what is trained; its name parts it, too."""
    options = ["--config", row.with_name("base.yaml"), "--config", row, "--print_config"]
    code, out, err = cli("train", *options)
    assert (code, err) == (0, "")
    made = yaml.safe_load(out)
    for group, values in yaml.safe_load(row.read_text()).items():
        assert made[group].items() >= values.items()
    if row.stem != "base":
        model, clipped = made["model"], made["train"]["clip_norm"] > 0
        assert row.stem.startswith(f"{model['cell']}{model['layers']}")
        assert model["image_as"] == (
            row.stem.partition("_")[2] if "word" in row.stem or "state" in row.stem else "every_step"
        )
        assert clipped == ("unclipped" not in row.stem)


def test_the_length_of_captions_is_that_of_the_model_unless_it_is_named():
    assert SearchConfig().for_model(45).max_length == 45
    assert SearchConfig(max_length=10).for_model(45).max_length == 10
    with pytest.raises(UserError, match="min_length is 30: expected 0 to 20"):
        SearchConfig(min_length=30).for_model(20)
