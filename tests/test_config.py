"""The defaults: valid, frozen, documented, and refused by name when they make no sense."""

import inspect
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
import yaml
from conftest import NO_DROPOUT

from captioner.config import DataConfig, ModelConfig, SearchConfig, TrainConfig, TrainerConfig
from captioner.errors import UserError

CONFIGS = (ModelConfig, DataConfig, SearchConfig, TrainConfig, TrainerConfig)


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
        (ModelConfig, "model.image_size", [31, 4097], [300, 4096]),
        (ModelConfig, "model.second_size", [31, 5000], [0, 32]),
        (ModelConfig, "model.trainable_layers", [-1, 6], [0, 5]),
        (ModelConfig, "model.cell", ["LSTM", "transformer"], ["rnn", "gru", "lstm"]),
        (ModelConfig, "model.layers", [0, 6], [1, 5]),
        (ModelConfig, "model.hidden_size", [0], [1]),
        (ModelConfig, "model.embedding_size", [0], [1]),
        *((ModelConfig, f"model.{name}", [-0.1, 1.0, float("nan")], [0.0, 0.99]) for name in NO_DROPOUT),
        (DataConfig, "data.min_count", [0], [1]),
        (DataConfig, "data.max_length", [0], [1]),
        (DataConfig, "data.batch_size", [0], [1]),
        (DataConfig, "data.feature_memory", [-1.0], [0.0]),
        (DataConfig, "data.workers", [-2], [-1, 0]),
        (SearchConfig, "beam", [0], [1]),
        (SearchConfig, "n_best", [0, 6], [1, 5]),
        (SearchConfig, "length_penalty", [-0.1], [0.0]),
        (SearchConfig, "max_length", [0], [1]),
        (SearchConfig, "min_length", [-1, 21], [0, 20]),
        (SearchConfig, "length_norm", ["none"], ["gnmt", "average"]),
        (SearchConfig, "no_repeat_ngram", [-1], [0, 1]),
        (SearchConfig, "groups", [0, 2, 10], [1, 5]),
        (TrainConfig, "train.epochs", [0], [1]),
        (TrainConfig, "train.lr", [0.0, -1.0], [1e-9]),
        (TrainConfig, "train.encoder_lr", [0.0], [1e-9]),
        (TrainConfig, "train.encoder_lr_decay", [0.0, 1.1], [0.5, 1.0]),
        (TrainConfig, "train.keep", [-1], [3]),
        (TrainConfig, "train.weight_decay", [-0.1], [0.0]),
        (TrainConfig, "train.warmup", [-0.1, 1.0], [0.0, 0.9]),
        (TrainConfig, "train.label_smoothing", [-0.1, 1.0], [0.0, 0.9]),
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
    ("options", "says"),
    [
        *(
            ({name: value}, f"{name} is {value!r}: expected .* unless sample is true")
            for name, value in [("temperature", 0.5), ("top_k", 5), ("top_p", 0.5), ("min_p", 0.5), ("seed", 3)]
        ),
        ({"diversity": 2.0}, "diversity is 2.0: expected 0.5 unless groups is 2 or more"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        SearchConfig(**options)
