"""Caption images on a page in the browser: drop, paste or photograph one, and see where the model looked.

Example: captioner demo --port 7860

The page is this machine's alone unless --host says otherwise, asks for no password, and needs no network.
"""

from __future__ import annotations

import os
from typing import Any

from captioner.cli.options import add_device_argument, resolve_device


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=str,
        help="a model to choose on the page; several times: several; without it, the shipped one",
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="0.0.0.0: the page is there for everybody")
    parser.add_argument("--port", type=int, default=7860, help="where the page is: http://127.0.0.1:7860")
    add_device_argument(parser)


def run(options: Any) -> None:
    """Serve the page; see the module's docstring."""
    from captioner.errors import UserError

    if not 1 <= options.port <= 65535:
        raise UserError(f"--port is {options.port}: expected 1 to 65535")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the page is made with gradio: pip install 'captioner[demo]'") from None
    from captioner.deploy.demo import Models, serve

    serve(Models(options.checkpoint, resolve_device(options.device)), options.host, options.port)
