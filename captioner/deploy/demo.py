"""The Gradio page of ``captioner demo``: upload an image, see its captions, their scores and attention maps."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from docstring_parser import parse
from markupsafe import Markup

from captioner.config import SearchConfig
from captioner.data.images import open_image
from captioner.deploy.model_card import read_facts
from captioner.errors import UserError, printable
from captioner.models.base import CaptionModel
from captioner.models.captioner import load
from captioner.models.weights import find_weights
from captioner.reports.gallery import IMAGE_SIDE, card_values
from captioner.reports.page import render, short_path, short_paths

PHOTOS = Path(__file__).parents[2] / "data" / "photos"  # the examples; an installed package has none
# Limits of a shared page: a beam of a million would block other visitors. SearchConfig checks the other fields.
RANGES: dict[str, tuple[float, float, float]] = {  # lowest, highest, step
    "beam": (1, 20, 1),
    "n_best": (1, 20, 1),
    "max_length": (0, 60, 1),
    "temperature": (0.1, 3, 0.1),
    "top_p": (0.05, 1, 0.05),
    "min_p": (0, 1, 0.05),
}
BASIC = ("beam", "n_best", "sample")  # always visible
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")  # visible, and used, when captions are sampled
# What the page calls the fields of SearchConfig; the help text of captioner predict stands below each.
LABELS = {
    "beam": "Width of the search",
    "n_best": "Captions to show",
    "max_length": "Most words",
    "min_length": "Fewest words",
    "length_norm": "How the score allows for length",
    "length_penalty": "Favour long captions",
    "no_repeat_ngram": "Never repeat this many words",
    "no_repeat_word": "Never a word twice in a row",
    "no_bad_ending": "No broken-off ending",
    "must": "Words it must use",
    "must_not": "Words it must not use",
    "prefix": "How it begins",
    "groups": "Groups of different captions",
    "diversity": "How different the groups are",
    "sample": "Draw words at random",
    "temperature": "Daring of the draw",
    "top_k": "Draw from so many words",
    "top_p": "Draw from words with this probability",
    "min_p": "Least probability of a word",
    "seed": "Number of the draw",
}
START_HINT = "Drop an image, paste one, take a photo or choose an example: its caption appears here."
SHADE_HINT = "The shade of a word shows its probability."
MAPS_HINT = "Point at a word, tap it, or move to it with Tab and the arrow keys to see its attention map."
UNSURE_HINT = "Unsure: about {:.0%} of such captions are right."
MAX_UPLOAD = "100mb"  # captioner.data.images limits the number of pixels


class ModelCache:
    """Models of several checkpoints (None: the shipped one), each loaded on first use and kept.

    Attributes:
        about: by path, what the model was trained on and cannot do; empty where its facts have no summary.
    """

    def __init__(self, paths: Sequence[str] | None, device: str) -> None:
        self.paths = list(dict.fromkeys(paths or [os.path.relpath(find_weights())]))
        self.device, self.loaded = device, dict[str, CaptionModel]()
        self.about = {path: read_facts(path).summary for path in self.paths}  # an error if there is none
        self.get(self.paths[0])

    def get(self, path: str) -> CaptionModel:
        """The model of one of the checkpoints."""
        if path not in self.paths:
            raise UserError(f"{path} is not served here: choose one of {', '.join(self.paths)}")
        if path not in self.loaded:
            self.loaded[path] = load(path, self.device)
        return self.loaded[path]


def option_help() -> dict[str, str]:
    """The help text of each field of SearchConfig, from its docstring, as ``--help`` shows it."""
    return {item.arg_name: " ".join((item.description or "").split()) for item in parse(SearchConfig.__doc__).params}


def search_config(values: Mapping[str, Any]) -> SearchConfig:
    """The search options of the controls, by field; those of sampling are ignored when captions are not sampled."""
    options: dict[str, Any] = {}
    for field in fields(SearchConfig):
        value = values[field.name]
        if field.name in SAMPLING and not values["sample"]:
            continue
        if value is None:
            raise UserError(f"{field.name} is empty: enter a number, such as {field.default}")
        low, high, _ = RANGES.get(field.name, (value, value, 0))
        if not low <= value <= high:
            raise UserError(f"{field.name} is {value}: expected {low:g} to {high:g} on this page")
        options[field.name] = type(getattr(SearchConfig, field.name))(value)  # a browser sends 3.0 for 3
    return SearchConfig(**options)


def results_html(models: ModelCache, checkpoint: str, image: str | None, values: Mapping[str, Any]) -> tuple[str, str]:
    """The best caption (or the error), and below it the words, maps and scores of all captions, as HTML.

    `image` is a file, if there is one; `values` are those of the controls, see :func:`search_config`.
    """
    if image is None:
        return _paragraph("hint", START_HINT), ""
    try:
        config, model = search_config(values), models.get(checkpoint)
        began = time.perf_counter()
        captions = model.caption(image, attention=model.has_attention, **asdict(config))
        seconds = time.perf_counter() - began
        card = card_values(os.path.basename(image), open_image(image, size_hint=IMAGE_SIDE), captions)
    except UserError as error:
        message = str(error).replace(image, os.path.basename(image))  # without folders of the server
        return _paragraph("wrong", _with_label(message)), ""
    hint = f"{SHADE_HINT} {MAPS_HINT}" if model.has_attention else SHADE_HINT
    footer = f"{short_path(checkpoint)}, {seconds:.2f} s"
    details = render("deploy/demo_details.html", **card, table=captions, hint=hint, footer=footer)
    best = _paragraph("best", captions[0].text)
    if captions[0].unsure:
        best += _paragraph("hint", UNSURE_HINT.format(captions[0].confidence))
    return best, details


def _with_label(message: str) -> str:
    """The message of a wrong option, with its name on the page: n_best is 7 → “Captions to show” is 7."""
    return re.sub(r"^\w+", lambda found: f"“{LABELS[found[0]]}”" if found[0] in LABELS else found[0], message)


def _paragraph(kind: str, text: str) -> str:
    """A paragraph of plain text; demo_head.html has the styles of each kind."""
    return Markup('<p class="{}">{}</p>').format(kind, printable(text))


def make_control(name: str, help_text: str) -> Any:
    """The Gradio component for a field of SearchConfig, with its default."""
    import gradio

    default = getattr(SearchConfig, name)
    info = help_text[:1].upper() + help_text[1:]
    options: dict[str, Any] = {"value": default, "label": LABELS[name], "info": info}
    if name == "length_norm":
        return gradio.Radio(["gnmt", "average"], **options)
    if isinstance(default, bool):
        return gradio.Checkbox(**options)
    if isinstance(default, str):
        return gradio.Textbox(**options)
    if name in RANGES:
        low, high, step = RANGES[name]
        return gradio.Slider(low, high, step=step, **options)
    return gradio.Number(precision=0 if isinstance(default, int) else None, **options)


def build_page(models: ModelCache) -> Any:
    """The page, a ``gradio.Blocks``, ready to be launched.

    Images are captioned one after the other, for all visitors; uploads are deleted after an hour.
    """
    import gradio

    with gradio.Blocks(title="captioner", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML("<h1>captioner</h1>", elem_classes="title")
        with gradio.Row(elem_id="sides"):
            with gradio.Column():
                image = _image_input()
                button = gradio.Button("Caption", variant="primary")
                with gradio.Column(elem_id="settings"):
                    choices = list(zip(short_paths(models.paths), models.paths, strict=True))
                    checkpoint = gradio.Dropdown(
                        choices, value=models.paths[0], label="Model", visible=len(models.paths) > 1
                    )
                    controls = _controls()
            with gradio.Column():
                plain: dict[str, Any] = {"elem_classes": "results", "apply_default_css": False}
                best = gradio.HTML(_paragraph("hint", START_HINT), elem_id="caption", **plain)
                details = gradio.HTML(**plain)
        about = gradio.HTML(_paragraph("hint", models.about[models.paths[0]]), elem_id="about", **plain)

        def respond(checkpoint: str, image: str | None, *values: Any) -> tuple[str, str]:
            return results_html(models, checkpoint, image, dict(zip(controls, values, strict=True)))

        gradio.on(
            [image.change, button.click],
            respond,
            [checkpoint, image, *controls.values()],
            [best, details],
            concurrency_limit=1,
            trigger_mode="always_last",
        )
        checkpoint.change(lambda path: _paragraph("hint", models.about.get(path, "")), checkpoint, about, queue=False)
    return blocks.queue(max_size=64)


def _image_input() -> Any:
    """The field for an image, with the photographs of the repository as examples."""
    import gradio

    image = gradio.Image(
        label="Image",
        alt_text="The image to caption",
        type="filepath",
        image_mode=None,  # an example stays the file it is
        sources=["upload", "webcam", "clipboard"],
        height=280,
        buttons=[],
    )
    # Gradio would open the file itself, with every decoder and a traceback
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    photos = sorted(PHOTOS.glob("*.jpg"))
    if photos:
        gradio.Examples([[str(photo)] for photo in photos], image, label="Examples", elem_id="examples")
    return image


def _controls() -> dict[str, Any]:
    """A control for each search option, by name; those of sampling are shown when captions are sampled."""
    import gradio

    texts = option_help()
    controls = {name: make_control(name, texts[name]) for name in BASIC}
    with gradio.Group(visible=SearchConfig.sample) as sampling:
        controls |= {name: make_control(name, texts[name]) for name in SAMPLING}
    with gradio.Accordion("More options", open=False):
        controls |= {name: make_control(name, text) for name, text in texts.items() if name not in controls}
    sample = controls["sample"]
    sample.change(lambda sampled: gradio.Group(visible=sampled), sample, sampling, queue=False)
    return controls


def _theme() -> Any:
    """Gradio's default in teal, with system fonts and text of sufficient contrast."""
    import gradio

    faint, faint_dark, primary, hover = "*neutral_600", "*neutral_300", "*primary_700", "*primary_800"
    return gradio.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        body_text_color_subdued=faint,
        body_text_color_subdued_dark=faint_dark,
        block_info_text_color=faint,
        block_info_text_color_dark=faint_dark,
        button_primary_background_fill=primary,
        button_primary_background_fill_dark=primary,
        button_primary_background_fill_hover=hover,
        button_primary_background_fill_hover_dark=hover,
    )


def serve(models: ModelCache, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    blocks = build_page(models)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(PHOTOS)],
            theme=_theme(),
            head=render("deploy/demo_head.html"),
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"http://{host}:{port} is not available ({error}): choose another --port") from None
    print(f"captioner demo: http://{host}:{port} (stop with Ctrl-C)", flush=True)
    blocks.block_thread()
