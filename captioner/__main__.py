"""The command line: ``captioner COMMAND …``, the same as ``python -m captioner COMMAND …``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from captioner import __version__
from captioner.errors import UserError

COMMANDS = {
    "train": "train a model on COCO-style data",
    "pretrain": "train the decoder as a language model, on text alone",
    "predict": "caption pictures",
    "demo": "caption pictures on a page in the browser",
    "serve": "caption pictures over HTTP",
    "evaluate": "caption a validation set and score the captions",
    "score": "score captions that are there already",
    "plot": "draw the curves of training runs",
    "gradients": "measure and draw gradients through time",
    "average": "average the weights of several checkpoints into one model",
    "export": "write a model as ONNX or torch.export graphs, or for the Hugging Face hub",
    "data fetch": "download COCO, Karpathy's splits or Flickr8k, resumably",
    "data inspect": "look at a data set: words, pictures, duplicates, splits that overlap",
    "data convert": "write a data set as COCO JSON or as WebDataset shards",
    "shapes": "draw the sample data of the demo",
}
OVERVIEW = "\n".join(
    [
        "usage: captioner COMMAND [options]",
        "",
        "Point it at COCO-style data and get a captioning model; point it at a picture and get a caption.",
        "",
        *(f"  {name:<14}{about}" for name, about in COMMANDS.items()),
        "",
        "captioner COMMAND --help shows the options of a command.",
    ]
)


class Parser(ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line on stderr, exit code 2."""
        text = " ".join(message.split())
        print(f"{self.prog}: error: {text} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 where some pictures could not be captioned, 2 for what the user can fix."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(OVERVIEW)
        return 0
    if name == "--version":
        print(f"captioner {__version__}")
        return 0
    if name == "data" and arguments:  # a command of two words
        name += " " + arguments.pop(0)
    if name not in COMMANDS:
        print(f"captioner: error: there is no command {name!r}: one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command: Any = importlib.import_module(f"captioner.commands.{name.replace(' ', '_')}")
    try:
        parser = Parser(prog=f"captioner {name}", description=command.__doc__)
        command.configure(parser)
        options = parser.parse_args([_underscored(argument) for argument in arguments])
        return command.run(parser.instantiate(options)) or 0
    except UserError as error:
        print(f"captioner {name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"captioner {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _underscored(argument: str) -> str:
    """``--n-best=3`` and ``--n_best=3`` are the same option."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


if __name__ == "__main__":
    sys.exit(main())
