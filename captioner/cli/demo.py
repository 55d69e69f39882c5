"""Caption images on a page in the browser: drop, paste or take a photo, and see its caption and attention maps.

Example: captioner demo --port 7860

The page is served to this machine only, unless --host is set; it has no password and needs no network.
"""

from __future__ import annotations

import os
from typing import Any

from captioner.cli.options import add_device_argument, resolve_device

CHECKPOINTS = "checkpoint"


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=str,
        help="file of a model or folder of a run (default: the shipped model); repeat it to offer several on the page",
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="0.0.0.0 also serves other machines")
    parser.add_argument("--port", type=int, default=7860, help="TCP port of the page")
    add_device_argument(parser)


def run(options: Any) -> None:
    """Serve the page; see the module's docstring."""
    from captioner.errors import UserError, install_hint

    if not 1 <= options.port <= 65535:
        raise UserError(f"--port is {options.port}: expected 1 to 65535")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError(f"demo needs gradio: {install_hint('demo')}") from None
    from captioner.deploy.demo import ModelCache, serve

    serve(ModelCache(options.checkpoint, resolve_device(options.device)), options.host, options.port)
