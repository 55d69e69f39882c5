"""The model card of a folder for the Hugging Face hub: what a model is, its data, scores, limits and licence."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from captioner.errors import UserError, one_line, printable
from captioner.files import check_yaml
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import file_digest, resolve_checkpoint
from captioner.reports.page import render

# The scores of a card: their names in captioner evaluate --json, and those of the hub's metrics
METRICS = {"BLEU-1": "bleu", "BLEU-4": "bleu", "ROUGE-L": "rouge", "CIDEr": "cider"}
SHIPPED = Path(__file__).with_name("shipped_model.yaml")  # the facts of the model that comes with captioner
KINDS: dict[Any, str] = {str: "text", list: "list", dict: "mapping"}  # of values, in messages
RESULT_KEYS = {"name", "dataset", "split", "images", "search", "scores"}


@dataclass(frozen=True)
class Facts:
    """What a card says that is not in the checkpoint; the fields are the keys of its YAML file.

    Args:
        title: of the card.
        digest: first 16 hex digits of the SHA-256 of the checkpoint; facts about other weights are refused.
        license: an identifier of the hub, such as mit or other.
        license_name: of other licences, with hyphens in the place of spaces.
        terms: the licence in words.
        language: of the captions, as in en.
        datasets: identifiers.
        summary: what the model was trained on and cannot do, in a few sentences; captioner demo shows it too.
        data: the training data in words.
        results: of each data set `name`, `dataset` (its identifier), `split`, `images`, `search`, and `scores` as
            captioner evaluate --json writes them.
        examples: captions by image.
        limits: one sentence each.
    """

    title: str = "An image captioning model"
    digest: str = ""
    license: str = ""
    license_name: str = ""
    terms: str = ""
    language: str = ""
    datasets: list[str] = field(default_factory=list)
    summary: str = ""
    data: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)


def read_facts(checkpoint: str | os.PathLike | None, file: str | os.PathLike | None = None, **typed: str) -> Facts:
    """The facts about a checkpoint, of its YAML file.

    Args:
        checkpoint: as for :func:`captioner.models.checkpoint.resolve_checkpoint`.
        file: by default the one beside the checkpoint with its name, as in captioner.yaml, if there is one; the shipped
            model has its facts in the package, wherever its weights are.
        typed: fields that replace those of the file, unless they are empty.

    Raises:
        UserError: the file is missing, has other keys or values, or is about other weights.
    """
    weights = resolve_checkpoint(checkpoint)
    here, path = file_digest(weights), weights.with_suffix(".yaml") if file is None else Path(file)
    facts = Facts()
    if file is not None or path.is_file():
        facts = _parse_facts(path)
        if facts.digest and facts.digest != here:
            what = f"is about other weights (digest {facts.digest}, {weights} has {here})"
            raise UserError(f"{path} {what}: correct what it says, and its digest")
    elif (shipped := _parse_facts(SHIPPED)).digest == here:
        facts = shipped
    named: dict[str, Any] = {name: printable(value) for name, value in typed.items() if value}
    return replace(facts, **named)


def _parse_facts(path: Path) -> Facts:
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        defaults = {each.name: getattr(Facts(), each.name) for each in fields(Facts)}
        for name, value in content.items():
            if name not in defaults:
                near = get_close_matches(str(name), defaults, 1)
                raise ValueError(f"unknown key {name}" + (f", did you mean {near[0]}?" if near else ""))
            if not isinstance(value, type(defaults[name])):
                raise ValueError(f"{name} is {str(value)[:40]!r}, expected a {KINDS[type(defaults[name])]}")
        for result in content.get("results", ()):
            _check_result(result)
        for name in ("datasets", "limits", "examples"):
            values = content.get(name, ())
            for value in values.values() if isinstance(values, dict) else values:
                if not isinstance(value, str):
                    raise ValueError(f"{name} has {str(value)[:40]!r}, expected a text")
        return Facts(**content)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{path}: the facts of a model card cannot be read ({one_line(error)}): see docs/export.md"
        ) from None


def _check_result(result: Any) -> None:
    if not isinstance(result, dict) or result.keys() != RESULT_KEYS:
        raise ValueError(f"each of results has {', '.join(sorted(RESULT_KEYS))}")
    try:
        scores = {name: value for name, value in result["scores"].items() if name in METRICS}
        intervals = result["scores"].get("intervals", {}).values()
        numbers = [result["images"], *scores.values(), *(each[end] for each in intervals for end in ("low", "high"))]
        if not scores or not all(math.isfinite(number) for number in numbers):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("images is a number, and scores are those of captioner evaluate --json") from None


def model_card(model: Captioner, facts: Facts) -> str:
    """The Markdown of a card, with its metadata as YAML at the top."""
    values = {
        "metadata": Markup(yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)),  # keeps its lines
        "rows": [(result, [_cell(result["scores"], name) for name in METRICS]) for result in facts.results],
        "words": len(model.vocabulary),
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    return render("deploy/model_card.md", facts=facts, names=list(METRICS), config=model.config, **values)


def _cell(scores: Mapping[str, Any], name: str) -> str:
    """A score with its interval, for a table."""
    if name not in scores:
        return ""
    interval = scores.get("intervals", {}).get(name)
    return f"{scores[name]:.1f}" + (f" [{interval['low']:.1f}, {interval['high']:.1f}]" if interval else "")


def _metadata(facts: Facts) -> dict[str, Any]:
    """What the hub reads: huggingface.co/docs/hub/model-cards. Nothing is said of what is not known."""
    results = [
        {
            "task": {"type": "image-to-text", "name": "Image captioning"},
            "dataset": {"type": result["dataset"], "name": result["name"], "split": result["split"]},
            "metrics": [
                {"type": kind, "name": f"{name} × 100", "value": round(float(result["scores"][name]), 2)}
                for name, kind in METRICS.items()
                if name in result["scores"]
            ],
        }
        for result in facts.results
    ]
    found = {
        "library_name": "captioner",
        "pipeline_tag": "image-to-text",
        "license": facts.license,
        "license_name": facts.license_name,
        "language": facts.language,
        "datasets": facts.datasets,
        "metrics": list(dict.fromkeys(METRICS.values())) if results else [],
        "tags": ["image-captioning", "pytorch"],
        "model-index": [{"name": facts.title, "results": results}] if results else [],
    }
    return {name: value for name, value in found.items() if value}
