"""Model cards: the facts about a model, the metadata that the hub reads, and errors in one line."""

import re

import pytest
import yaml
from helpers import SHIPPED, make_captioner, refused

from captioner.deploy.model_card import METRICS, Facts, model_card, read_facts
from captioner.models.checkpoint import file_digest


@pytest.fixture(scope="module")
def checkpoint(captioner, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "tiny.safetensors"
    captioner.save(path)
    return path


def metadata(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


SCORES = {"BLEU-4": 20.0, "CIDEr": 60.123, "intervals": {"CIDEr": {"low": 50.0, "high": 70.04}}}
RESULT = {"name": "Squares", "dataset": "squares", "split": "val", "images": 1000, "search": "beam 5", "scores": SCORES}

RESULT_TEXT = "name: a, dataset: a, split: a, search: a"


def test_the_facts_of_the_shipped_model_are_about_its_weights():
    """After new weights: python docs/model_facts.py."""
    facts = read_facts(None)
    assert facts.digest == file_digest(SHIPPED)
    assert {"license", "language", "datasets", "limits", "examples"} <= {name for name, v in vars(facts).items() if v}
    for scores in (result["scores"] for result in facts.results):
        for name in METRICS:
            assert scores["intervals"][name]["low"] < scores[name] < scores["intervals"][name]["high"]


def test_the_hub_reads_the_card_of_the_shipped_model(captioner):
    """With the hub's own parser."""
    hub = pytest.importorskip("huggingface_hub")
    facts = read_facts(None)
    data = hub.ModelCard(model_card(captioner, facts)).data
    assert (data.license, data.language, data.library_name) == ("other", "en", "captioner")
    assert (data.pipeline_tag, data.datasets) == ("image-to-text", facts.datasets)
    found = {(result.dataset_name, result.metric_name): result.metric_value for result in data.eval_results}
    for result in facts.results:
        for name in METRICS:
            assert found[result["name"], f"{name} × 100"] == pytest.approx(result["scores"][name], abs=0.01)


def test_what_is_not_known_is_not_said(captioner, checkpoint):
    card = model_card(captioner, read_facts(checkpoint))
    assert set(metadata(card)) == {"library_name", "pipeline_tag", "tags"}
    assert card.count("ot stated") == 3  # data, scores, licence
    assert "An image captioning model" in card


def test_scores_have_their_intervals(captioner):
    card = model_card(captioner, Facts(results=[RESULT]))
    assert "| Squares, 1,000 | beam 5 |  | 20.0 |  | 60.1 [50.0, 70.0] |" in card
    (row,) = metadata(card)["model-index"][0]["results"]
    assert [metric["value"] for metric in row["metrics"]] == [20.0, 60.12]
    assert metadata(card)["metrics"] == ["bleu", "rouge", "cider"]


def test_text_of_any_kind_stays_in_its_place(captioner, tmp_path, checkpoint):
    """In the metadata and in tables."""
    facts = read_facts(checkpoint, title="a: 'b'\n---\nlicense: mit # |", data="über alles: {x}")
    card = model_card(captioner, Facts(title=facts.title, data=facts.data, results=[RESULT], examples={"a|b": "c|d"}))
    assert metadata(card)["model-index"][0]["name"] == "a: 'b' --- license: mit # |"
    assert "license" not in metadata(card)
    assert "| a\\|b | c\\|d |" in card


def test_facts_lie_beside_the_checkpoint_and_typed_ones_win(checkpoint, tmp_path):
    beside = checkpoint.with_suffix(".yaml")
    beside.write_text(f"title: Squares\nlicense: mit\ndigest: '{file_digest(checkpoint)}'\n")
    try:
        assert read_facts(checkpoint, title="Circles", data="") == Facts("Circles", file_digest(checkpoint), "mit")
        other = tmp_path / "other.yaml"
        other.write_text("language: de\n")
        assert read_facts(checkpoint, other) == Facts(language="de")
    finally:
        beside.unlink()


SCORES = "results: [{{name: a, dataset: a, split: a, images: 1, search: a, scores: {}}}]"
WRONG_SCORES = (
    "3",
    "{CIDEr: .nan}",
    "{METEOR: 1}",
    "{CIDEr: 1, intervals: [1]}",
    "{CIDEr: 1, intervals: {CIDEr: 1}}",
    "{CIDEr: 1, intervals: {CIDEr: {low: 1}}}",
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("licence: mit", ["unknown key licence", "did you mean license?"]),
        ("digest: 0123456789abcdef", ["other weights", "0123456789abcdef"]),
        ("datasets: flickr8k", ["datasets", "expected a list"]),
        ("title: [1]", ["title", "expected a text"]),
        ("[1]", ["not a mapping"]),
        ("title: {", ["cannot be read"]),
        ("title: a\ntitle: b", ["line 2: title occurs twice"]),
        ("results: [{name: a}]", ["each of results has", "scores"]),
        (
            "results: [{name: a, dataset: a, split: a, images: 1, search: a, scores: {CIDEr: high}}]",
            ["evaluate --json"],
        ),
        *((SCORES.format(scores), ["evaluate --json"]) for scores in WRONG_SCORES),
        ("datasets: [flickr8k, null]", ["datasets has 'None'"]),
        ("limits: [{a: b}]", ["limits has"]),
        ("examples: {a.jpg: 3}", ["examples has '3'"]),
    ],
)
def test_invalid_facts(checkpoint, tmp_path, text, says):
    file = tmp_path / "facts.yaml"
    file.write_text(text)
    refused(read_facts, checkpoint, file, says=[str(file), *says])


def test_facts_that_are_missing(checkpoint, tmp_path):
    refused(read_facts, checkpoint, tmp_path / "none.yaml", says=["none.yaml"])


def test_options_of_a_card_go_with_the_hub(cli, checkpoint, tmp_path):
    for name in ("card", "title", "data"):
        code, _, err = cli(
            "export", "--to", "onnx", "--checkpoint", checkpoint, "--output", tmp_path / "x", f"--{name}", checkpoint
        )
        assert (code, f"--{name} has no effect without --to hf" in err) == (2, True)


def test_the_architecture_is_in_the_card(weights):
    card = model_card(make_captioner(attention="soft", grid=1), Facts())
    assert "resnet18 (attention (soft) over a 1 × 1 grid), 1 layer(s) of lstm" in card
