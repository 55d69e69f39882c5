"""A trained model as ONNX or torch.export graphs, or as a folder for the Hugging Face hub."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner import __version__
from captioner.config import SearchConfig
from captioner.deploy.model_card import Facts, model_card
from captioner.errors import UserError, install_hint, one_line
from captioner.files import atomic_folder, write_json
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import save_slim

FORMAT = 1  # of config.json
ENDINGS = {"onnx": "onnx", "torch-export": "pt2"}


class EncoderGraph(nn.Module):
    """Images (B, 3, S, S) uint8 → the tensors of the state, then those of the context, B rows each."""

    def __init__(self, model: Captioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        _, state, context = self.model.start_search(images)
        return (*state, *context)


class StepGraph(nn.Module):
    """Words (N,), then state and context, N rows each → log-probabilities (N, V), then the next state."""

    def __init__(self, model: Captioner, state_tensors: int) -> None:
        super().__init__()
        self.decoder, self.state_tensors = model.decoder, state_tensors

    def forward(self, words: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        log_probs, state = self.decoder.step(words, rest[: self.state_tensors], rest[self.state_tensors :])
        return (log_probs, *state)


def export_graphs(model: Captioner, to: str, folder: Path, int8: bool = False) -> None:
    """Write ``encoder``, ``step`` and ``config.json``; both graphs take any number of rows.

    The step's context has a row for each row of the state: repeat an image's context for each of its beams.

    Args:
        model: in evaluation mode, on the CPU.
        to: onnx or torch-export.
        folder: a new one.
        int8: the step's matrices in 8 bits (onnx only).

    Raises:
        UserError: a model of clips, a missing package, or a folder that cannot be written.
    """
    if model.frames:
        raise UserError("export takes models of images, but this model captions clips and albums")
    if int8 and to != "onnx":
        raise UserError("--int8 goes with --to onnx")
    images = torch.randint(256, (2, 3, model.image_size, model.image_size), dtype=torch.uint8)
    with torch.no_grad():
        _, state, context = model.start_search(images)
    # Copies, because the exporter treats inputs that are the same object as one input
    state, context = (tuple(torch.randn_like(tensor) for tensor in tensors) for tensors in (state, context))
    states, contexts = ([f"{kind}_{n}" for n in range(len(t))] for kind, t in (("state", state), ("context", context)))
    words = torch.full((2,), 1)
    rows = torch.export.Dim("rows", min=1, max=65536)
    with atomic_folder(folder) as part:
        encoder, step = (part / f"{name}.{ENDINGS[to]}" for name in ("encoder", "step"))
        _write_graph(encoder, EncoderGraph(model), {"images": images}, [*states, *contexts], ({0: rows},))
        inputs = dict(zip(["words", *states, *contexts], (words, *state, *context), strict=True))
        outputs = ["log_probs", *(f"{name}_after" for name in states)]
        shapes = ({0: rows}, tuple({0: rows} for _ in (*state, *context)))
        _write_graph(step, StepGraph(model, len(state)), inputs, outputs, shapes)
        if int8:
            _quantize(part / "step.onnx")
        config: dict[str, Any] = {
            "format": FORMAT,
            "captioner": __version__,
            "image_size": model.image_size,
            "words": list(model.vocabulary.words),
            "level": model.vocabulary.level,
            "state": len(states),
            "context": len(contexts),
            "search": asdict(SearchConfig().for_model(model.max_length)),
        }
        write_json(part / "config.json", config)


def _write_graph(file: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], shapes: Any) -> None:
    """Trace a module with these inputs and write it; the file's ending names the format."""
    values = tuple(inputs.values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about its own code
        program = torch.export.export(module.eval(), values, dynamic_shapes=shapes, strict=False)
        if file.suffix == ".pt2":
            buffer = io.BytesIO()  # torch.export.save to a file on a full disk ends the process
            torch.export.save(program, buffer)
            file.write_bytes(buffer.getbuffer())
            return
        try:
            import onnxscript  # noqa: F401
        except ImportError:
            raise UserError(f"--to onnx needs onnxscript: {install_hint('export')}") from None
        names: Any = {"input_names": list(inputs), "output_names": outputs}
        torch.onnx.export(program, values, file, **names, dynamo=True, external_data=False, verbose=False)


def _quantize(file: Path) -> None:
    """Store the matrices of a graph in 8 bits; activations are quantised at run time."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise UserError(f"--int8 needs onnxruntime: {install_hint('export')}") from None
    model = onnx.load(file)
    del model.graph.value_info[:]  # onnxruntime 1.23 keeps the old shapes of matrices that it transposes
    # Unsigned: sums of products of signed weights overflow 16 bits on CPUs without VNNI, which changes the captions
    quantize_dynamic(model, file, weight_type=QuantType.QUInt8, op_types_to_quantize=["MatMul", "Gemm"])


def export_hub(model: Captioner, folder: Path, facts: Facts) -> None:
    """Write ``config.json``, ``model.safetensors`` with the encoder in it, and a model card ``README.md``.

    Args:
        model: any.
        folder: a new one.
        facts: what the card says besides the architecture.

    Raises:
        UserError: the folder cannot be written.
    """
    header = {**model.header(), "encoder_inside": True}
    with atomic_folder(folder) as part:
        save_slim(part / "model.safetensors", header, _lossless_state(model), half=False)
        config = {"architectures": ["captioner"], "library_name": "captioner", "captioner": __version__, **header}
        write_json(part / "config.json", config)
        (part / "README.md").write_text(model_card(model, facts), encoding="utf-8")


def _lossless_state(model: Captioner) -> dict[str, Tensor]:
    """All tensors but the output matrix of tied embeddings, in fp16 where that is exact."""
    state = {}
    for name, value in model.state_dict().items():
        if name == "decoder.output.weight" and model.config.tie_embeddings:
            continue
        exact = value.is_floating_point() and torch.equal(value.half().float(), value.float())
        state[name] = value.half() if exact else value
    return state


def push(folder: Path, name: str) -> str:
    """Upload a folder of :func:`export_hub` to the hub as organisation/name; return its address.

    Raises:
        UserError: huggingface_hub is missing, or the upload fails.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(f"--push needs huggingface_hub: {install_hint('hub')}") from None
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=name, commit_message=f"captioner {__version__}"))
    except Exception as error:  # of the network, of the hub, of a name that is not valid
        raise UserError(f"{folder} is written, but {name} was not uploaded ({one_line(error)})") from None
