"""The page of ``captioner demo``, by Gradio: an image in; its captions, and where the model looked for them, out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from docstring_parser import parse

from captioner.config import SearchConfig
from captioner.data.images import open_image
from captioner.errors import UserError
from captioner.models.base import Caption, CaptionModel
from captioner.models.captioner import load
from captioner.models.checkpoint import CHECKPOINTS, SHIPPED, resolve_checkpoint
from captioner.reports import gallery
from captioner.reports.gallery import SIDE, card, text

PHOTOS = CHECKPOINTS.parent / "data" / "photos"  # the examples; where captioner is not run from its repository, none
PAGE = Path(__file__).with_suffix(".html")  # what is added to the head of Gradio's page
# What visitors may ask for: a beam of a million would keep the others waiting. Of the other fields SearchConfig judges.
RANGES: dict[str, tuple[float, float, float]] = {  # lowest, highest, step
    "beam": (1, 20, 1),
    "n_best": (1, 20, 1),
    "max_length": (1, 60, 1),
    "temperature": (0.1, 3, 0.1),
    "top_p": (0.05, 1, 0.05),
    "min_p": (0, 1, 0.05),
}
BASIC = ("beam", "n_best", "sample")  # always in sight
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")  # in sight, and used, when captions are sampled
HOW_TO_READ = "The shade of a word is its probability."
HOW_TO_LOOK = "Point at a word, tap it, or go to it with Tab and the arrow keys, to see where the model looked for it."
LARGEST = "100mb"  # of an upload; how many pixels it may have, captioner.data.images knows


class Models:
    """Checkpoints by name, opened when they are first asked for, and kept.

    Args:
        paths: checkpoints, which are their own names; none: the one that ships with captioner.
        device: where the models are put.

    Raises:
        UserError: the first one cannot be opened, or another one is no file.
    """

    def __init__(self, paths: Sequence[str] | None, device: str) -> None:
        self.paths = list(dict.fromkeys(paths or [os.path.relpath(SHIPPED)]))
        self.device, self.opened = device, dict[str, CaptionModel]()
        for path in self.paths[1:]:
            if not resolve_checkpoint(path).is_file():
                raise UserError(f"there is no checkpoint {path}: name another file")
        self.get(self.paths[0])

    def get(self, path: str) -> CaptionModel:
        """The model of one of the checkpoints.

        Raises:
            UserError: it cannot be opened, or is not one of them.
        """
        if path not in self.paths:
            raise UserError(f"{path} is not served here: choose one of {', '.join(self.paths)}")
        if path not in self.opened:
            self.opened[path] = load(path, self.device)
        return self.opened[path]


def helps() -> dict[str, str]:
    """What each field of SearchConfig is for: its docstring, which is also what ``--help`` shows."""
    return {item.arg_name: " ".join((item.description or "").split()) for item in parse(SearchConfig.__doc__).params}


def search_of(values: Mapping[str, Any]) -> SearchConfig:
    """What the controls ask for, by field. Those of sampling do not count when captions are not sampled.

    Raises:
        UserError: a value makes no sense, or is out of RANGES.
    """
    asked: dict[str, Any] = {}
    for field in fields(SearchConfig):
        value = values[field.name]
        if field.name in SAMPLING and not values["sample"]:
            continue
        if value is None:
            raise UserError(f"{field.name} is empty: enter a number, such as {field.default}")
        low, high, _ = RANGES.get(field.name, (value, value, 0))
        if not low <= value <= high:
            raise UserError(f"{field.name} is {value}: expected {low:g} to {high:g} on this page")
        asked[field.name] = type(getattr(SearchConfig, field.name))(value)  # a browser knows one kind of number
    return SearchConfig(**asked)


def answer(models: Models, checkpoint: str, image: str | None, values: Mapping[str, Any]) -> tuple[str, str]:
    """The best caption, or what is wrong, and everything there is to know about the captions: two pieces of HTML.

    Args:
        image: the file of an image, if there is one.
        values: of the controls; see :func:`search_of`.
    """
    if image is None:
        return paragraph(
            "hint", "Drop an image, paste one, take one or choose an example: its caption appears here."
        ), ""
    try:
        config, model = search_of(values), models.get(checkpoint)
        began = time.perf_counter()
        captions = model.caption(image, attention=model.has_attention, **asdict(config))
        seconds = time.perf_counter() - began
        shown = card(os.path.basename(image), open_image(image, size_hint=SIDE), captions)
    except UserError as error:
        said = str(error).replace(image, os.path.basename(image))  # where it lies is no business of a visitor
        return paragraph("wrong", said), ""
    shown = shown.replace("<details", "<details open", 1)  # the maps of the words are what many come for
    about = [HOW_TO_READ] + [HOW_TO_LOOK] * model.has_attention
    parts = [shown, paragraph("hint", " ".join(about)), table(captions)]
    return paragraph("best", captions[0].text), "".join([*parts, paragraph("hint", f"{checkpoint}, {seconds:.2f} s")])


def paragraph(kind: str, plain: str) -> str:
    """A paragraph of plain text as HTML; demo.html has the kinds."""
    return f'<p class="{kind}">{text(plain)}</p>'


def table(captions: Sequence[Caption]) -> str:
    """The captions with their scores, best first, as an HTML table."""
    rows = "".join(
        f"<tr><td>{text(caption.text)}{'' if caption.ended else ' …'}</td><td>{caption.log_prob:.2f}</td>"
        f"<td>{caption.score:.2f}</td><td>{caption.perplexity:.2f}</td></tr>\n"
        for caption in captions
    )
    names = {
        "Caption": "the words",
        "Log-prob.": "natural logarithm of the probability of the words",
        "Score": "the same over the length penalty: captions are ranked by it",
        "Perplexity": "how many words the model hesitated between, on average",
    }
    heads = "".join(f'<th scope="col" title="{why}">{name}</th>' for name, why in names.items())
    top = f'<table aria-label="Captions and their scores"><thead><tr>{heads}</tr></thead>'
    return f"{top}\n<tbody>{rows}</tbody></table>"


def head() -> str:
    """Styles and scripts of the page: its own, and those of the gallery's cards, which draw the maps."""
    style, script = map(gallery.read, gallery.SHARED)
    _, cards = style.split("/* captions over images */")
    return PAGE.read_text(encoding="utf-8").replace("{{cards}}", cards).replace("{{script}}", script)


def control(name: str, about: str) -> Any:
    """The Gradio component for a field of SearchConfig, with its default."""
    import gradio

    default = getattr(SearchConfig, name)
    label, info = name.replace("_", " ").capitalize(), about[:1].upper() + about[1:]
    options: dict[str, Any] = {"value": default, "label": label, "info": info}
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


def page(models: Models) -> Any:
    """The page, a ``gradio.Blocks``, ready to be launched.

    Images are captioned one after the other, whoever sent them; uploads are deleted after an hour.
    """
    import gradio

    about, controls = helps(), dict[str, Any]()
    with gradio.Blocks(title="captioner", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML("<h1>captioner</h1>", elem_classes="title")
        with gradio.Row(elem_id="sides"):
            with gradio.Column():
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
                    gradio.Examples(
                        [[str(photo)] for photo in photos],
                        image,
                        label="Examples",
                        example_labels=[photo.stem.capitalize() for photo in photos],
                    )
                button = gradio.Button("Caption", variant="primary")
                with gradio.Column(elem_id="settings"):
                    checkpoint = gradio.Dropdown(
                        models.paths, value=models.paths[0], label="Checkpoint", visible=len(models.paths) > 1
                    )
                    for name in BASIC:
                        controls[name] = control(name, about[name])
                    with gradio.Group(visible=SearchConfig.sample) as sampling:
                        for name in SAMPLING:
                            controls[name] = control(name, about[name])
                    with gradio.Accordion("More rules", open=False):
                        for name in about:
                            if name not in controls:
                                controls[name] = control(name, about[name])
            with gradio.Column():
                plain: dict[str, Any] = {"elem_classes": "results", "apply_default_css": False}
                said = gradio.HTML(answer(models, "", None, {})[0], elem_id="said", **plain)
                found = gradio.HTML(**plain)

        def respond(checkpoint: str, image: str | None, *values: Any) -> tuple[str, str]:
            return answer(models, checkpoint, image, dict(zip(controls, values, strict=True)))

        controls["sample"].change(
            lambda sample: gradio.Group(visible=sample), controls["sample"], sampling, queue=False
        )
        gradio.on(
            [image.change, button.click],
            respond,
            [checkpoint, image, *controls.values()],
            [said, found],
            concurrency_limit=1,
            trigger_mode="always_last",
        )
    return blocks.queue(max_size=64)


def theme() -> Any:
    """Gradio's default, in teal, with fonts that every machine has and text that stands out enough to be read."""
    import gradio

    faint, primary = ("*neutral_600", "*neutral_300"), "*primary_700"
    return gradio.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        body_text_color_subdued=faint[0],
        body_text_color_subdued_dark=faint[1],
        block_info_text_color=faint[0],
        block_info_text_color_dark=faint[1],
        button_primary_background_fill=primary,
        button_primary_background_fill_dark=primary,
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def serve(models: Models, host: str, port: int, block: bool = True) -> Any:
    """Serve the page until it is interrupted; without `block`, go on and return the page, to be closed.

    Raises:
        UserError: the address cannot be had.
    """
    blocks = page(models)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size=LARGEST,
            allowed_paths=[str(PHOTOS)],
            theme=theme(),
            head=head(),
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"http://{host}:{port} cannot be had ({error}): choose another --port") from None
    print(f"captioner demo: http://{host}:{port} (stop with Ctrl-C)", flush=True)
    if block:
        blocks.block_thread()
    return blocks
