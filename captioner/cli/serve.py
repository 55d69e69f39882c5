"""Caption images over HTTP: POST files or base64 to /caption and receive JSON; see docs/serving.md.

Example: captioner serve --port 8000 --beam 3, then: curl -F files=@dog.jpg http://127.0.0.1:8000/caption

GET / says what there is, /docs describes it.
"""

from __future__ import annotations

import signal
import socket
from typing import Any

from captioner.cli.options import add_checkpoint_arguments, config_of, model_name, resolve_device
from captioner.config import SearchConfig, ServeConfig
from captioner.errors import UserError, install_hint

MAIN = "checkpoint device host port beam n_best max_batch max_bytes max_images timeout allow_urls access_log cors"

CHECKPOINTS = "checkpoint"


def configure(parser: Any) -> None:
    """Declare the options."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="0.0.0.0 also serves other machines")
    parser.add_argument("--port", type=int, default=8000, help="TCP port")
    about = "origin whose pages may send requests, such as https://example.org, or * for any; repeat it for several"
    parser.add_argument("--cors", action="append", type=str, help=about)
    parser.add_class_arguments(ServeConfig)
    parser.add_class_arguments(SearchConfig)


def run(options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have begun are answered."""
    search, config = config_of(SearchConfig, options), config_of(ServeConfig, options)
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))  # before the seconds that the model takes
        except (OSError, OverflowError) as error:
            place = f"{options.host}:{options.port}"
            raise UserError(f"{place} is not available ({error}): choose another --host or --port") from None
        _serve(options, search, config, listener)


def _serve(options: Any, search: SearchConfig, config: ServeConfig, listener: socket.socket) -> None:
    try:
        import uvicorn

        from captioner.deploy.server import make_app
    except ImportError as error:
        raise UserError(f"serve needs {error.name}: {install_hint('serve')}") from None
    from captioner.models.captioner import load

    model = load(options.checkpoint, resolve_device(options.device))
    app = make_app(model, search, config, model_name(options.checkpoint), options.cors or ())
    listener.listen(128)
    seconds = int(config.timeout) + 1
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=seconds))
    place = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{place}:{listener.getsockname()[1]}/ is ready (stop with Ctrl-C)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises them again after its shutdown
    server.run([listener])
