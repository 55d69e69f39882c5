"""Write a trained model for use elsewhere: ONNX or torch.export graphs, or a folder for the Hugging Face hub.

Example: captioner export --to onnx --output exported, then: python -m captioner.deploy.onnx_runner exported photo.jpg
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Literal

from captioner.errors import UserError

CHECKPOINTS = "checkpoint"
READS = "card"
WRITES = "output"
NEEDS = {"card title data push": "--to hf", "int8": "--to onnx"}


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument(
        "--checkpoint", type=str, help="file of a model or folder of a run (default: the shipped model)"
    )
    parser.add_argument("--to", type=Literal["onnx", "torch-export", "hf"], required=True, help="which format")
    parser.add_argument("--output", type=str, required=True, help="a new folder")
    parser.add_argument("--int8", type=bool, default=False, help="onnx: store the matrices of the decoder in 8 bits")
    about = "hf: YAML file of facts for the model card (default: the one beside the checkpoint with its name, if any)"
    parser.add_argument("--card", type=str, help=about)
    parser.add_argument("--title", type=str, default="", help="hf: title of the model card")
    parser.add_argument("--data", type=str, default="", help="hf: training data, for the model card")
    parser.add_argument("--push", type=str, help="hf: also upload the folder as organisation/name")


def run(options: Any) -> None:
    """Open, convert and write; see the module's docstring."""
    if options.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.push):
        raise UserError(f"--push is {options.push}: expected organisation/name")
    from captioner.deploy.export import export_graphs, export_hub, push
    from captioner.models.captioner import Captioner

    model, folder = Captioner.load(options.checkpoint), Path(options.output)
    if options.to == "hf":
        from captioner.deploy.model_card import read_facts

        facts = read_facts(options.checkpoint, options.card, title=options.title, data=options.data)
        export_hub(model, folder, facts)
        print(f"{options.output}: captioner predict PHOTO.jpg --checkpoint {shlex.quote(options.output)}")
        if options.push:
            print(push(folder, options.push))
        return
    export_graphs(model, options.to, folder, options.int8)
    hint = f": python -m captioner.deploy.onnx_runner {options.output} PHOTO.jpg" if options.to == "onnx" else ""
    print(f"{options.output}{hint}")
