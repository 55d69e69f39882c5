"""--init-from: what is taken from another checkpoint, what is left, and what is refused."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from helpers import SMALL, WORDS, arguments, is_one_line, make_captioner, refused, train, typed

from captioner.__main__ import main
from captioner.config import ModelConfig
from captioner.data.vocabulary import SPECIAL, UNK, Vocabulary
from captioner.errors import UserError
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import make_header, parse_header, read_header, resolve_checkpoint, save_slim
from captioner.models.init_from import check_same_model, init_from
from captioner.models.language_model import LanguageModel, language_model_weights


def other(words=WORDS, trained=0, **options) -> Captioner:
    """A model that agrees with make_captioner's in no number."""
    model = make_captioner(trained, **options)
    again = Captioner(model.config, Vocabulary(words), model.encoder, model.encoder_digest)
    with torch.no_grad():
        for parameter in again.decoder.parameters():
            parameter += 1.0
    return again


def saved(model: Captioner, folder, half: bool = False):
    model.save(folder / "model.safetensors", half)
    return folder / "model.safetensors"


def decoders_differ(a: Captioner, b: Captioner) -> list[str]:
    one, two = a.decoder.state_dict(), b.decoder.state_dict()
    return [name for name in one if not torch.equal(one[name], two[name])]


@pytest.mark.parametrize(
    ("options", "trained"),
    [({}, 0), ({}, 1), ({"tie_embeddings": True}, 0), ({"cell": "rnn", "layers": 2}, 0), ({"cell": "gru"}, 0)],
)
def test_a_model_of_the_same_kind_is_taken_whole(tmp_path, options, trained):
    first, second = other(trained=trained, **options), make_captioner(trained, **options)
    if trained:
        with torch.no_grad():
            first.encoder.resnet.layer4[0].conv1.weight += 0.01
    assert decoders_differ(first, second)
    said = init_from(second, saved(first, tmp_path))
    assert not decoders_differ(first, second)
    assert not trained or torch.equal(
        first.encoder.resnet.layer4[0].conv1.weight, second.encoder.resnet.layer4[0].conv1.weight
    )
    assert is_one_line(said, "model.safetensors: took ", "output (9 old words, 0 new, 0 lost)"), said
    assert "left" not in said


def test_half_precision_is_enough(tmp_path):
    first, second = other(), make_captioner()
    init_from(second, saved(first, tmp_path, half=True))
    assert torch.equal(second.decoder.output.weight, first.decoder.output.weight.half().float())


@pytest.mark.parametrize("kind", ["classes", "words"])
def test_concepts_that_a_checkpoint_lacks_add_nothing_at_first(tmp_path, kind):
    first, second = other(), make_captioner(concepts=kind)
    said = init_from(second, saved(first, tmp_path))
    assert is_one_line(said, "left concepts"), said
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    (step, state, context), (other_step, other_state, other_context) = (m.start_search(images) for m in (first, second))
    words = torch.tensor([4, 5])
    log_probs, _ = step(words, state, context)
    torch.testing.assert_close(other_step(words, other_state, other_context)[0], log_probs)


@pytest.mark.parametrize("tied", [(False, False), (True, True), (True, False)])
def test_rows_are_matched_by_word(tmp_path, tied):
    """Other words in another order, and more of them."""
    words = ["circle", "dog", "square", "a"]
    first = other(words, tie_embeddings=tied[0])
    second = make_captioner(tie_embeddings=tied[1])
    said = init_from(second, saved(first, tmp_path))
    assert "(3 old words, 6 new, 1 lost)" in said
    for part in (lambda decoder: decoder.embedding.weight, lambda decoder: decoder.output.weight):
        now, source = part(second.decoder), part(first.decoder)
        mean = source.mean(dim=0)
        farthest = (source - mean).norm(dim=1).max()
        for i, word in enumerate(second.vocabulary.words):
            place = first.vocabulary.ids.get(word)
            if place is None:
                assert 0 < (now[i] - mean).norm() <= 0.11 * farthest, word
            else:
                assert torch.equal(now[i], source[place]), word
    assert first.vocabulary.words[: UNK + 1] == second.vocabulary.words[: UNK + 1] == SPECIAL


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"layers": 2}, "left rnn (layers is 2 there and 1 here)"),
        ({"hidden_size": 8}, "left rnn, output (hidden_size is 8 there and 16 here)"),
        ({"cell": "rnn"}, "left rnn (cell is rnn there and lstm here)"),
        ({"embedding_size": 8}, "left embedding, project, rnn (embedding_size is 8 there and 16 here)"),
    ],
)
def test_a_part_that_does_not_fit_stays_as_it_was(tmp_path, options, left):
    first, second, same = other(**options), make_captioner(), make_captioner()
    said = init_from(second, saved(first, tmp_path))
    assert said.endswith(left), said
    for name in same.decoder.state_dict():
        part = name.split(".")[0]
        kept = torch.equal(second.decoder.state_dict()[name], same.decoder.state_dict()[name])
        assert kept == (part in left.split("(")[0]), name


def test_an_unused_encoder_is_left(tmp_path):
    said = init_from(make_captioner(), saved(other(trained=1), tmp_path))
    assert said.endswith("; left encoder"), said


def test_nothing_fits(tmp_path):
    file = saved(other(hidden_size=8, embedding_size=8, cell="gru"), tmp_path)
    model, same = make_captioner(trained=0), make_captioner()
    with pytest.raises(UserError) as refused:
        init_from(model, file)
    assert is_one_line(str(refused.value), str(file), "cell is gru there and lstm here", "hidden_size is 8 there")
    assert not decoders_differ(model, same)


# ---- captioner train --init-from


def test_a_run_begins_with_the_weights(tiny, run, tmp_path, capsys):
    """A rate of almost nothing leaves them as they were."""
    still = ("--train.epochs", "1", "--train.lr", "1e-12", "--train.weight_decay", "0")
    slim = run / "captioner.safetensors"
    assert train(tiny, tmp_path / "run", *still, "--init-from", slim) == 0
    assert f"{slim}: took embedding, project, rnn, output" in capsys.readouterr().out
    source, found = Captioner.load(slim), Captioner.load(tmp_path / "run" / "captioner.safetensors")
    for one, two in zip(source.decoder.parameters(), found.decoder.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-3)
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["init_from"] == str(slim)


def test_a_resumed_run_keeps_its_own_weights(tiny, run, tmp_path, cli):
    out = tmp_path / "run"
    options = ("--train.epochs", "1", "--init-from", run / "last.ckpt")
    assert train(tiny, out, *options) == 0
    before = (out / "captioner.safetensors").read_bytes()
    code, printed, _ = cli("train", "--config", out / "config.yaml", "--resume")
    assert code == 0
    assert "took" not in printed
    assert (out / "captioner.safetensors").read_bytes() == before


def test_a_wrong_file_is_one_line(tiny, tmp_path, cli):
    code, _, err = cli(*arguments(tiny, tmp_path / "run", "--init-from", tmp_path / "none.safetensors"))
    assert code == 2
    assert is_one_line(err, "none.safetensors", "captioner train"), err


def test_a_config_without_it_is_read_back(tiny, tmp_path, cli):
    out = tmp_path / "run"
    assert train(tiny, out, "--train.epochs", "1") == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["init_from"] is None
    code, _, err = cli("train", "--config", out / "config.yaml", "--resume")
    assert code == 0, err


@torch.no_grad()
def test_trained_stages_are_copied_to_a_model_that_trains_as_many_or_more(tmp_path):
    first = make_captioner(1)
    first.encoder.resnet.layer4[0].conv1.weight += 0.01
    file = saved(first, tmp_path)
    for count in (1, 2):
        model = make_captioner(count)
        assert "took" in init_from(model, file)
        found, plain = model.encoder.state_dict(), make_captioner(count).encoder.state_dict()
        changed = [name for name in found if not torch.equal(found[name], plain[name])]
        assert changed == ["resnet.layer4.0.conv1.weight"]
        assert torch.equal(found[changed[0]], first.encoder.state_dict()[changed[0]])
    file = saved(make_captioner(2), tmp_path)
    refused(lambda: init_from(make_captioner(1), file), says=["trained in 2 stages", "--model.trainable_layers 2"])


# ---- the options of the checkpoint


NO_MODEL = {name: value for name, value in SMALL.items() if not name.startswith("model.")}


def train_from(coco, start, out, *options) -> int:
    """``train --init-from`` without options of the model."""
    words = [*typed(NO_MODEL), *coco.options(), "--init-from", start, "--output", out, *options]
    return main(["train", *map(str, words)])


def config_of(run) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint whose options are not the defaults."""
    folder = tmp_path_factory.mktemp("start")
    return saved(make_captioner(cell="gru", layers=2, embedding_size=12, dropout=0.4), folder)


def test_options_that_are_not_given_are_those_of_the_checkpoint(tiny, start, tmp_path, capsys):
    assert train_from(tiny, start, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    model = config_of(tmp_path / "run")["model"]
    assert model == read_header(start)["model"] == read_header(tmp_path / "run")["model"]
    (line,) = [line for line in printed.splitlines() if "model options" in line]
    assert is_one_line(
        line, "model options taken: encoder resnet18", "cell gru", "layers 2", "embedding_size 12", "dropout 0.4"
    ), line
    assert "attention" not in line
    assert "; left" not in printed


def test_typed_options_come_before_a_config_and_that_before_the_checkpoint(tiny, start, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: {cell: rnn, hidden_size: 8, dropout: 0.4}")
    options = ("--config", tmp_path / "mine.yaml", "--model.hidden_size", 4, "--train.epochs", 1)
    assert train_from(tiny, start, tmp_path / "run", *options) == 0
    model = config_of(tmp_path / "run")["model"]
    found = [model[name] for name in ("cell", "hidden_size", "dropout", "layers", "embedding_size")]
    assert found == ["rnn", 4, 0.4, 2, 12]
    _, line = [line for line in capsys.readouterr().out.splitlines() if "model options" in line]
    assert line.endswith("model options given instead: cell rnn (there gru), hidden_size 4 (there 16)")


def test_options_that_need_those_of_the_checkpoint(tmp_path, cli):
    """cell_dropout alone would be refused: it needs a grid, which the checkpoint has."""
    start = saved(make_captioner(grid=2, attention="soft"), tmp_path)
    code, out, err = cli("train", "--init-from", start, "--model.cell_dropout", 0.25, "--print_config")
    assert code == 0, err
    model = yaml.safe_load(out)["model"]
    assert (model["attention"], model["grid"], model["cell_dropout"]) == ("soft", 2, 0.25)


def test_a_run_is_resumed_without_its_options_and_its_start(tiny, start, tmp_path, capsys):
    own = tmp_path / "start.safetensors"
    shutil.copy(start, own)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    extend = ("--data.vocabulary", "extend", "--train.ema_decay", 0.5, "--train.start_weight", 0.5)
    assert train_from(tiny, own, whole, *extend, "--train.epochs", 3) == 0
    assert train_from(tiny, own, parts, *extend, "--train.epochs", 2) == 0
    capsys.readouterr()
    own.unlink()
    for again in range(2):
        assert main(["train", "--resume", "--output", str(parts), "--train.epochs", "3"]) == 0, again
    assert "model options" not in capsys.readouterr().out
    first, second = config_of(whole), config_of(parts)
    assert {**first, "output": ""} == {**second, "output": ""}
    assert Captioner.load(parts).vocabulary.words == Captioner.load(whole).vocabulary.words


def test_a_share_of_the_start_stays(tiny, start, tmp_path, cli):
    found = []
    for share in (0, 0.9):
        options = ("--train.start_weight", share, "--train.lr", 0.1)
        assert train_from(tiny, start, tmp_path / f"run{share}", *options) == 0
        moved, before = (Captioner.load(path).decoder.project.weight for path in (tmp_path / f"run{share}", start))
        found.append((moved - before).norm().item())
    assert 0.05 * found[0] < found[1] < 0.2 * found[0]
    code, _, err = cli(*arguments(tiny, tmp_path / "run", "--train.start_weight", "auto"))
    assert (code, is_one_line(err, "--train.start_weight", "--init-from")) == (2, True), err


def test_shipped_is_the_model_that_ships():
    assert resolve_checkpoint("shipped") == resolve_checkpoint(None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model.cell", "lstm"), "model.cell is gru there and lstm here"),
        (("--model.layers", 1, "--model.hidden_size", 8), "model.layers is 2 there and 1 here; model.hidden_size is"),
        (("--model.concepts", "words", "--model.encoder", "resnet34"), "model.encoder is resnet18 there"),
        (("--model.image_as", "first_word"), "model.image_as is every_step there and first_word here"),
        (("--init-from", "LM"), "language model"),
    ],
)
def test_self_critical_training_that_would_leave_parts_is_refused(tiny, start, tmp_path, cli, options, says):
    if "LM" in options:
        words = Vocabulary(WORDS)
        file = tmp_path / "lm.safetensors"
        model = LanguageModel(ModelConfig(hidden_size=8, embedding_size=8), words)
        save_slim(
            file, make_header(model.config, words, kind="language_model"), language_model_weights(model.state_dict())
        )
        options = ("--init-from", file)
    every = [*typed(NO_MODEL), *tiny.options(), "--train.objective", "scst", "--init-from", start, *options]
    code, _, err = cli("train", *every, "--output", tmp_path / "run")
    assert code == 2
    assert is_one_line(err, "scst goes on from a trained model", says), err
    assert not (tmp_path / "run").exists()


def test_self_critical_training_begins_with_a_model(tiny, tmp_path, cli):
    code, _, err = cli(*arguments(tiny, tmp_path / "run", "--train.objective", "scst"))
    assert (code, is_one_line(err, "scst goes on from a trained model", "--init-from")) == (2, True), err


def test_self_critical_training_may_have_other_dropout_and_concepts(tiny, start):
    config = parse_header(start, read_header(start))[0]
    check_same_model(replace(config, dropout=0.0, image_size=64, concepts="words", trainable_layers=2), start)
    refused(check_same_model, replace(config, tie_embeddings=False, embedding_size=16), start, says=["embedding_size"])
