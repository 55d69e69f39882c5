"""A trained model in forms that need no captioner, or no torch: ONNX or torch.export graphs, a folder for the hub."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner import __version__
from captioner.config import SearchConfig
from captioner.errors import UserError
from captioner.files import atomic_folder
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import save_slim

FORMAT = 1
ENDINGS = {"onnx": "onnx", "torch-export": "pt2"}


class Begin(nn.Module):
    """Images (B, 3, S, S) uint8 → the parts of the state, then those of the context, B rows each."""

    def __init__(self, model: Captioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        _, state, context = self.model.start_search(images)
        return (*state, *context)


class Further(nn.Module):
    """One step: words (N,), then the state and the context, N rows each → log-probabilities (N, V), the state after."""

    def __init__(self, model: Captioner, parts: int) -> None:
        super().__init__()
        self.decoder, self.parts = model.decoder, parts

    def forward(self, words: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        log_probs, state = self.decoder.step(words, rest[: self.parts], rest[self.parts :])
        return (log_probs, *state)


def export_graphs(model: Captioner, to: str, folder: Path, int8: bool = False) -> None:
    """Write ``encoder``, ``step`` and ``config.json``; the axis of the rows is free in both graphs.

    The step's context has a row for each row of the state, so repeat an image's as often as it has beams.

    Args:
        model: in evaluation mode, on the CPU.
        to: onnx or torch-export.
        folder: a new one.
        int8: the step's matrices in 8 bits (onnx only).

    Raises:
        UserError: a model of clips, packages that are missing, or a folder that cannot be written.
    """
    if model.frames:
        raise UserError("export knows models of images, and this one captions clips and albums")
    if int8 and to != "onnx":
        raise UserError("--int8 goes with --to onnx")
    rows = torch.export.Dim("rows", min=1, max=65536)
    size, ending = model.image_size, ENDINGS[to]
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        _, state, context = model.start_search(images)
    state, context = (tuple(torch.randn_like(part) for part in parts) for parts in (state, context))  # none the same
    states, contexts = _names("state", state), _names("context", context)
    words = torch.full((2,), 1)
    graphs = {
        "encoder": (Begin(model), (images,), ["images"], states + contexts),
        "step": (
            Further(model, len(state)),
            (words, *state, *context),
            ["words", *states, *contexts],
            ["log_probs", *(f"{name}_after" for name in states)],
        ),
    }
    with atomic_folder(folder) as aside:
        for name, (module, inputs, ins, outs) in graphs.items():
            shapes: Any = ({0: rows},) if name == "encoder" else ({0: rows}, tuple({0: rows} for _ in inputs[1:]))
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of the exporter about itself
                program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
                if to == "torch-export":
                    buffer = io.BytesIO()  # where the disk is full, writing to a file ends the process
                    torch.export.save(program, buffer)
                    (aside / f"{name}.{ending}").write_bytes(buffer.getbuffer())
                else:
                    _to_onnx(program, inputs, ins, outs, aside / f"{name}.onnx")
        if int8:
            _quantize(aside / "step.onnx")
        config = {
            "format": FORMAT,
            "captioner": __version__,
            "image_size": size,
            "words": list(model.vocabulary.words),
            "level": model.vocabulary.level,
            "state": len(states),
            "context": len(contexts),
            "search": asdict(SearchConfig()),
        }
        (aside / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _names(kind: str, parts: tuple[Tensor, ...]) -> list[str]:
    return [f"{kind}_{number}" for number in range(len(parts))]


def _to_onnx(program: Any, inputs: Any, ins: list[str], outs: list[str], file: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--to onnx needs onnxscript: pip install 'captioner[export]'") from None
    torch.onnx.export(
        program, inputs, file, input_names=ins, output_names=outs, dynamo=True, external_data=False, verbose=False
    )


def _quantize(file: Path) -> None:
    """Matrices of a graph in 8 bits, what they are multiplied with quantised as it comes."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise UserError("--int8 needs onnxruntime: pip install 'captioner[export]'") from None
    plain = onnx.load(file)
    del plain.graph.value_info[:]  # shapes are inferred anew; onnxruntime 1.23 keeps those of matrices it has turned
    # Unsigned: products of signed weights overflow their 16 bits on CPUs without VNNI, and the words are others
    quantize_dynamic(plain, file, weight_type=QuantType.QUInt8, op_types_to_quantize=["MatMul", "Gemm"])


# ---- the hub


def export_hub(model: Captioner, folder: Path, about: str, data: str) -> None:
    """Write ``config.json``, ``model.safetensors`` with the encoder in it, and a model card ``README.md``.

    Args:
        model: any.
        folder: a new one.
        about: the title of the card.
        data: what it was trained on, for the card.

    Raises:
        UserError: a folder that cannot be written.
    """
    header = {**model.header(), "encoder_inside": True}
    with atomic_folder(folder) as aside:
        save_slim(aside / "model.safetensors", header, _lossless(model), half=False)
        config = {"architectures": ["captioner"], "library_name": "captioner", "captioner": __version__, **header}
        (aside / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(card(model, about, data), encoding="utf-8")


def _lossless(model: Captioner) -> dict[str, Tensor]:
    """All tensors, those of an untied model's twin left out; in fp16 where that loses nothing."""
    found = {}
    for name, value in model.state_dict().items():
        if name == "decoder.output.weight" and model.config.tie_embeddings:
            continue
        exact = value.is_floating_point() and torch.equal(value.half().float(), value.float())
        found[name] = value.half() if exact else value
    return found


def card(model: Captioner, about: str, data: str) -> str:
    """A model card (https://huggingface.co/docs/hub/model-cards)."""
    config = model.config
    numbers = sum(parameter.numel() for parameter in model.parameters())
    looks = (
        f"attention ({config.attention}) over a {config.grid} × {config.grid} grid" if config.grid else "one feature"
    )
    return f"""---
library_name: captioner
pipeline_tag: image-to-text
tags:
- image-captioning
- pytorch
---
# {about}

Writes a caption for an image: {config.encoder} ({looks}), {config.layers} layer(s) of {config.cell}, hidden size
{config.hidden_size}, {len(model.vocabulary):,} words, {numbers:,} parameters, the encoder among them.

```python
import captioner

model = captioner.load("PATH OF THIS FOLDER")  # or hf://organisation/name
print(model.caption("photo.jpg"))
```

**Training data**: {data or "not said"}. **Scores**: not said; `captioner evaluate --checkpoint FOLDER` measures them.
It says what was common in its training captions, also where it is wrong; it knows no other words.
"""


def push(folder: Path, name: str) -> str:
    """Upload a folder of :func:`export_hub` to the hub as organisation/name; the address comes back.

    Raises:
        UserError: huggingface_hub is missing, or the hub refuses.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("--push needs huggingface_hub: pip install 'captioner[hub]'") from None
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=name, commit_message=f"captioner {__version__}"))
    except Exception as error:  # of the network, of the hub, of a name that is none
        raise UserError(
            f"{folder} is whole, but {name} was not uploaded ({' '.join(str(error).split())[:200]})"
        ) from None
