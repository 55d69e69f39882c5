"""A Trainer, a decoder and an encoder of one's own: they train, are saved and loaded again; docs/extend.md runs."""

import re
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from helpers import ROOT, WORDS, make_captioner, refused
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import captioner
from captioner.config import DataConfig, ModelConfig, SearchConfig, TrainConfig
from captioner.data.dataset import load_batch
from captioner.data.layout import Layout
from captioner.data.vocabulary import START, Vocabulary
from captioner.deploy.export import export_graphs
from captioner.deploy.onnx_runner import Runner
from captioner.models.captioner import Captioner, Ensemble
from captioner.models.confidence import Calibration
from captioner.models.encoder import Encoder, weights_digest
from captioner.training.datamodule import CaptionData, EvaluationData
from captioner.training.task import CaptionTask

SIZES = {"image_size": 32, "second_size": 0, "hidden_size": 16, "embedding_size": 16}
CUSTOM = ModelConfig("custom:Pixels", **SIZES)
FAST = TrainConfig(lr=1e-2)


class Gru(nn.Module):
    """The decoder of the page, with tied embeddings."""

    def __init__(self, config, vocabulary_size, feature_size, extra=0):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        self.image = nn.Linear(feature_size, config.hidden_size)
        self.rnn = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)
        self.output = nn.Linear(config.hidden_size, vocabulary_size)
        self.output.weight = self.embedding.weight
        self.extra = nn.Parameter(torch.zeros(extra))

    def start(self, features):
        return (torch.tanh(self.image(16 * features.float())),), ()

    def step(self, words, state, context):
        hidden, h = self.rnn(self.embedding(words)[:, None], state[0][None])
        return torch.log_softmax(self.output(hidden[:, 0]).float(), dim=-1), (h[0],)

    def forward(self, features, words, image_of, layout):
        (h,), _ = self.start(features)
        hidden, _ = self.rnn(self.embedding(words), h[image_of][None])
        return self.output(hidden.flatten(0, 1)[layout.targets])


class Pixels(nn.Module):
    """A mean colour and its map, with a buffer and a BatchNorm."""

    def __init__(self, cells=0):
        super().__init__()
        self.norm, self.map, self.cells = nn.BatchNorm2d(3), nn.Linear(3, 8), cells
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, images):
        x = self.norm(images.float() / 255).flatten(2).transpose(1, 2)  # (B, H · W, 3)
        return self.map(x[:, : self.cells] if self.cells else x.mean(dim=1))


def other_name(cls):
    return type("Other", (cls,), {})


@pytest.fixture(scope="module")
def files(tiny):
    return DataConfig(**tiny.data(), min_count=1, batch_size=8, workers=0)


@pytest.fixture(scope="module")
def data(files):
    return CaptionData(files, ModelConfig("resnet18", **SIZES))


def trainer(folder=None, **options):
    given = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **options}
    if folder is None:
        return pl.Trainer(enable_checkpointing=False, enable_model_summary=False, **given)
    best = pl.callbacks.ModelCheckpoint(folder, "best", monitor="val_cider", mode="max", enable_version_counter=False)
    return pl.Trainer(callbacks=[best], enable_model_summary=False, **given)


def test_a_plain_trainer_trains_tests_and_predicts(data, tiny, images, tmp_path):
    plain, task = trainer(tmp_path, max_epochs=2), CaptionTask.from_data(data, train=FAST)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    plain.fit(task, data)
    assert task.steps == plain.global_step == 2 * len(data.train_sampler())
    assert any(not torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert plain.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert task.model.caption(images)  # with the encoder whose features it was trained on
    assert not any(name.startswith("encoder") for name in task.model.state_dict())

    again = CaptionTask.load_from_checkpoint(tmp_path / "best.ckpt", search=SearchConfig(beam=2))
    test = EvaluationData(again.model, str(tiny.annotations("val")), str(tiny.images("val")), "val")
    (scores,) = plain.test(again, test, verbose=False)
    assert set(scores) >= {"test_cider", "test_bleu4", "test_rouge", "test_loss"}
    (validated,) = plain.validate(again, data, verbose=False)
    assert scores["test_cider"] == pytest.approx(validated["val_cider"], abs=0.1)
    assert scores["test_loss"] == pytest.approx(validated["val_loss"], abs=0.01)

    expected = again.model.caption(sorted(tiny.images("val").iterdir()), beam=2)
    found = [caption["caption"] for part in plain.predict(again, test) for caption in part]
    assert found == expected
    pixels = load_batch(sorted(tiny.images("val").iterdir()), 32)[0]
    for loader in (DataLoader(pixels, 4), DataLoader([(image, 0) for image in pixels], 4)):
        assert [one["caption"] for part in plain.predict(again, loader) for one in part] == expected
    assert captioner.load(tmp_path / "best.ckpt").caption(images, beam=2) == again.model.caption(images, beam=2)


def test_a_checkpoint_is_resumed(data, tmp_path):
    trainer(tmp_path).fit(CaptionTask.from_data(data, train=FAST), data)
    longer, task = trainer(max_epochs=3), CaptionTask.from_data(data, train=FAST)
    longer.fit(task, data, ckpt_path=tmp_path / "best.ckpt", weights_only=True)
    assert longer.current_epoch == 3
    assert task.steps == 3 * len(data.train_sampler())


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 12),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
        ({"max_epochs": 5, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
    ],
)
def test_the_steps_are_those_of_the_trainer(data, options, steps):
    task = CaptionTask.from_data(data)
    task._trainer = trainer(**options)
    task._trainer.datamodule = data
    assert len(data.train_sampler()) == 5
    assert task.count_steps() == steps


def test_a_training_without_end_is_refused(data):
    refused(lambda: trainer(max_epochs=-1).fit(CaptionTask.from_data(data), data), says=["max_epochs or max_steps"])


def test_other_batches_than_the_datas_are_refused(data):
    task = CaptionTask.from_data(data)
    refused(lambda: trainer(overfit_batches=1).fit(task, data), says=["overfit_batches", "limit_train_batches"])
    endless = CaptionTask(make_model(data), references=[])
    refused(lambda: trainer().fit(endless, DataLoader(Endless(), None)), says=["max_steps"])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(int, 1)


def test_loaders_of_ones_own(data, tiny):
    model = make_model(data)
    own = EvaluationData(model, str(tiny.annotations("val")), str(tiny.images("val")), "val")
    loader = own.test_dataloader()
    task = CaptionTask(model, FAST, references=own.references())
    trainer(max_epochs=2).fit(task, loader, loader)
    assert task.steps == 2
    task = CaptionTask(model, FAST)
    refused(lambda: trainer().fit(task, loader, loader), says=["references", "EvaluationData"])


def make_model(data, **parts):
    return Captioner(data.model, data.vocabulary, None, weights_digest("resnet18"), **parts)


def test_what_does_not_fit_the_data_is_refused(data, files, captioner):
    refused(lambda: CaptionTask.from_data(data, captioner), says=["another vocabulary", "DataConfig(vocabulary="])
    other = Captioner(replace(data.model, image_size=64), data.vocabulary, None, "")
    refused(lambda: CaptionTask.from_data(data, other), says=["another image_size"])
    refused(lambda: CaptionTask.from_data(data, make_model(data), decoder=Gru), says=["leave them out"])
    refused(lambda: CaptionTask.from_data(data, encoder=Pixels()), says=["custom:Pixels"])
    refused(lambda: CaptionTask.from_data(data, train=TrainConfig(objective="scst")), says=["by_image=True"])
    frozen = CaptionData(files, data.model, encoder=Encoder(data.model))
    refused(lambda: CaptionTask.from_data(frozen), says=["fine-tuned encoder"])
    for decoder in (Gru(data.model, 9, 512), "Gru"):
        refused(lambda given=decoder: CaptionTask.from_data(data, decoder=given), says=["expected its class"])
    for decoder in (lambda *sizes: nn.Linear(2, 2), lambda *sizes: sizes):
        refused(lambda given=decoder: CaptionTask.from_data(data, decoder=given), says=["decoder makes a", "start"])
    task = CaptionTask.from_data(data)
    refused(lambda: trainer().test(task, data), says=["EvaluationData"])
    refused(lambda: trainer().predict(task, data), says=["EvaluationData"])
    for batch in (torch.zeros(3, 32, 32), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)):
        refused(lambda images=batch: trainer().predict(task, DataLoader(images)), says=["(I, 3, 32, 32) uint8"])


class Modes(pl.Callback):
    """Whether the decoder and the encoder are in training mode in each step."""

    def __init__(self):
        self.seen = set()

    def on_train_batch_start(self, trainer, task, *_):
        encoder = task.model.encoder
        self.seen.add((task.model.decoder.training, encoder is not None and encoder.training))


def test_a_model_is_trained_further(data, files, tmp_path, images):
    first = CaptionTask.from_data(data, train=FAST)
    first.model.calibration = Calibration(1.0, 1.0, 40.0, 100, {})
    first.model.save(tmp_path / "first.safetensors")
    model = Captioner.load(tmp_path / "first.safetensors")
    words = replace(files, vocabulary=str(tmp_path / "first.safetensors"))
    task, modes = CaptionTask.from_data(CaptionData(words, model.config), model, FAST), Modes()
    trainer(callbacks=[modes]).fit(task, data)
    assert modes.seen == {(True, False)}  # with dropout
    assert task.model is model
    assert model.caption(images)
    assert model.calibration is None  # it was of other weights

    again, modes = CaptionTask.load_from_checkpoint(tmp_path / "first.safetensors"), Modes()
    trainer(callbacks=[modes]).fit(again, data)
    assert modes.seen == {(True, False)}
    other = CaptionTask(make_captioner())
    refused(lambda: trainer().fit(other, data), says=["another vocabulary"])


def test_self_critical_training_of_a_custom_decoder(files):
    data = CaptionData(files, ModelConfig("resnet18", **SIZES), by_image=True)
    train = TrainConfig(objective="scst", rollouts=2)
    task = CaptionTask.from_data(data, train=train, decoder=Gru)
    trainer().fit(task, data)
    assert task.steps


# ---- a custom decoder


def custom(tmp_path, decoder=Gru, **more):
    """A model with a custom decoder, and its file."""
    torch.manual_seed(0)
    config = ModelConfig("resnet18", **SIZES)
    model = Captioner(config, Vocabulary(WORDS), None, weights_digest("resnet18"), decoder=decoder, **more).eval()
    model.save(tmp_path / "custom.safetensors", half=False)
    return model, tmp_path / "custom.safetensors"


@pytest.mark.parametrize("half", [False, True])
def test_a_custom_decoder_trains_is_saved_and_loaded(data, images, tmp_path, half):
    task = CaptionTask.from_data(data, train=FAST, decoder=Gru)
    trainer(tmp_path).fit(task, data)
    model = task.model.eval()
    model.save(tmp_path / "model.safetensors", half=half)
    again = captioner.load(tmp_path / "model.safetensors", decoder=Gru)
    assert again.decoder.output.weight is again.decoder.embedding.weight
    for name, value in model.decoder.state_dict().items():
        assert torch.allclose(again.decoder.state_dict()[name], value, rtol=1e-3, atol=0 if not half else 1e-3), name
    best = captioner.load(tmp_path, decoder=Gru)  # best.ckpt
    assert isinstance(best.decoder, Gru)
    loaded = CaptionTask.load_from_checkpoint(tmp_path / "best.ckpt", decoder=Gru)
    assert loaded.model.caption(images) == best.caption(images)


def test_searches_with_a_custom_decoder(images, tmp_path):
    model, _ = custom(tmp_path)
    alone = [model.caption(path, beam=4) for path in images]
    assert model.caption(images, beam=4) == alone  # batched as single
    for options in ({"beam": 1}, {"groups": 2, "beam": 4}, {"must": "red", "beam": 4}, {"sample": True}):
        assert len(model.caption(images, **options)) == 5
    assert all("red" in text.split() for text in model.caption(images, must="red", beam=4))
    twice = Ensemble([model, model], ["a", "b"]).eval()
    assert twice.caption(images, beam=4) == alone
    refused(lambda: model.caption(images, attention=True), says=["no attention maps"])


@torch.no_grad()
def test_steps_and_teacher_forcing_agree(images, tmp_path):
    model, _ = custom(tmp_path)
    features, words = model.features(load_batch(images[:2], 32)[0]), torch.tensor([[START, 4, 5], [START, 6, 7]])
    layout = Layout.of_words(torch.nn.functional.pad(words, (0, 1), value=2).numpy())
    logits = model.decoder(features, words, torch.arange(2), layout)
    state, context = model.decoder.start(features)
    stepped = {}
    for t in range(3):
        log_probs, state = model.decoder.step(words[:, t], state, context)
        stepped |= {3 * i + t: log_probs[i] for i in range(2)}
    expected = torch.stack([stepped[i] for i in layout.targets.tolist()])
    assert torch.allclose(logits.log_softmax(dim=1), expected, atol=1e-5)


def test_a_function_gives_a_decoder_its_parameters(tmp_path):
    def build(*sizes):
        return Gru(*sizes, extra=3)

    model, file = custom(tmp_path, build)
    assert Captioner.load(file, decoder=build).decoder.extra.shape == model.decoder.extra.shape == (3,)
    refused(lambda: Captioner.load(file, decoder=Gru), says=["does not fit Gru", "decoder.extra", "give the class"])


def test_without_its_class_a_decoder_is_refused(tmp_path, captioner, cli, images, tiny):
    _, file = custom(tmp_path)
    says = [str(file), "a custom decoder, Gru", f"captioner.load('{file}', decoder=Gru)"]
    refused(lambda: Captioner.load(file), says=says)
    refused(lambda: Captioner.load(file, decoder=other_name(Gru)), says=["custom decoder, Gru, not a Other"])
    refused(lambda: Captioner.load(file, decoder=Gru, encoder=Pixels), says=["no custom encoder", "leave out encoder="])
    captioner.save(tmp_path / "plain.safetensors")
    refused(lambda: Captioner.load(tmp_path / "plain.safetensors", decoder=Gru), says=["no custom decoder"])
    for command in (
        ("predict", images[0], "--checkpoint", file),
        ("average", file, file, "--output", tmp_path / "mean.safetensors"),
        ("export", "--to", "onnx", "--checkpoint", file, "--output", tmp_path / "out"),
    ):
        code, _, err = cli(*command)
        assert code == 2
        assert "custom decoder, Gru" in err
        assert "damaged" not in err


def test_a_header_with_another_decoder_is_refused(tmp_path):
    model, file = custom(tmp_path)
    captioner.models.checkpoint.save_slim(file, {**model.header(), "decoder": 3}, model.weights())
    refused(lambda: Captioner.load(file), says=["decoder is '3'"])


# ---- a custom encoder


def test_a_custom_encoder_trains_is_saved_and_loaded(files, images, tmp_path):
    data = CaptionData(files, CUSTOM)
    start = Pixels()
    task = CaptionTask.from_data(data, train=replace(FAST, encoder_lr=1e-2), encoder=start, decoder=Gru)
    before = start.map.weight.clone()
    trainer(tmp_path).fit(task, data)
    model = task.model.eval()
    assert not torch.equal(model.encoder.map.weight, before)  # it is trained
    model.save(tmp_path / "model.safetensors", half=False)
    untouched = Pixels()
    state = {name: value.clone() for name, value in untouched.state_dict().items()}
    for encoder in (Pixels, untouched):
        again = captioner.load(tmp_path / "model.safetensors", decoder=Gru, encoder=encoder)
        assert again.encoder is not untouched
        for name, value in model.encoder.state_dict().items():
            assert torch.equal(again.encoder.state_dict()[name], value), name
        assert again.caption(images) == model.caption(images)
    assert all(torch.equal(value, state[name]) for name, value in untouched.state_dict().items())
    both = captioner.load([tmp_path / "model.safetensors"] * 2, decoder=Gru, encoder=Pixels)
    assert both.members[0].encoder is not both.members[1].encoder
    assert both.caption(images) == model.caption(images)
    file = tmp_path / "model.safetensors"
    refused(lambda: Captioner.load(file), says=["decoder, Gru and a custom encoder, Pixels", "encoder=Pixels)"])
    refused(lambda: Captioner.load(file, decoder=Gru), says=["encoder=Pixels"])


def test_a_frozen_custom_encoder_stays_and_captioners_decoder_takes_it(files, images, tmp_path):
    encoder = Pixels().requires_grad_(False)
    data = CaptionData(files, CUSTOM)
    task = CaptionTask.from_data(data, train=FAST, encoder=encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    trainer().fit(task, data)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    task.model.eval().save(tmp_path / "model.safetensors")
    assert len(captioner.load(tmp_path / "model.safetensors", encoder=Pixels).caption(images)) == 5


def test_a_grid_of_a_custom_encoder():
    config = replace(CUSTOM, grid=2, attention="soft")
    model = Captioner(config, Vocabulary(WORDS), Pixels(4), "").eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model.features(images).shape == (2, 4, 8)
    assert [tuple(each.shape) for each in model.attention_maps(images, ["a red", "a"])] == [(3, 2, 2), (2, 2, 2)]


class Strange(nn.Module):
    """An encoder that makes whatever it is told to."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, images):
        return self.result


STRANGE = {
    "one feature": (torch.zeros(8), "(8,)"),
    "a grid": (torch.zeros(2, 4, 8), "(2, 4, 8)"),
    "integers": (torch.zeros(2, 8, dtype=torch.long), "torch.int64"),
    "a tuple": ((torch.zeros(2, 8),), "tuple"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_features_of_another_shape_are_refused(kind):
    result, found = STRANGE[kind]
    config = ModelConfig("custom:Strange", **SIZES)
    says = ["Strange makes", found, "expected floats (B, F)"]
    refused(lambda: Captioner(config, Vocabulary(WORDS), Strange(result), ""), says=says)


def test_the_encoder_is_that_of_the_architecture(files, tmp_path, cli, tiny):
    vocabulary = Vocabulary(WORDS)
    refused(lambda: Captioner(CUSTOM, vocabulary, None, ""), says=["custom:Pixels", "no encoder"])
    refused(lambda: Captioner(CUSTOM, vocabulary, other_name(Pixels)(), ""), says=["custom:Pixels", "a Other"])
    for options in ({"second_size": 16}, {"trainable_layers": 1}, {"frames": 2}, {"concepts": "words"}):
        refused(lambda given=options: replace(CUSTOM, **given), says=[*options, "custom encoder"])
    refused(lambda: ModelConfig("custom:"), says=["custom:CLASS"])
    out = tmp_path / "run"
    code, _, err = cli(
        "train", *tiny.options(), "--model.encoder", "custom:Pixels", "--model.second_size", 0, "--output", out
    )
    assert code == 2
    assert "docs/extend.md" in err
    assert not out.exists()


def test_a_frozen_encoder_is_built_only_when_images_come(data):
    model = make_captioner(1)
    model.encoder = None
    refused(lambda: model.caption(torch.zeros(3, 32, 32)), says=["no encoder", "load its checkpoint"])
    frozen = make_model(data)
    assert not frozen.unsaved_encoder
    frozen.features(torch.zeros(1, 512))
    assert not frozen.unsaved_encoder
    frozen.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert not [name for name in frozen.state_dict() if name.startswith("encoder")]


@pytest.mark.slow
def test_custom_parts_are_exported(images, tmp_path):
    pytest.importorskip("onnxruntime")
    model = Captioner(CUSTOM, Vocabulary(WORDS), Pixels(), "", decoder=Gru).eval()
    export_graphs(model, "onnx", tmp_path / "onnx")
    runner = Runner(tmp_path / "onnx")
    assert [runner.caption(path) for path in images] == model.caption(images)
    export_graphs(model, "torch-export", tmp_path / "torch")


# ---- the page


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    exec("\n".join(blocks), {"__name__": "page"})
    assert "custom decoder, MyDecoder" in capsys.readouterr().out
