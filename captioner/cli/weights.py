"""Show which weights are used and from where, or put this version's into the cache of the user.

Example: captioner weights --from captioner.safetensors resnet50_v1.safetensors resnet50_v1_head.safetensors

Weights are looked for in the folder that the variable CAPTIONER_WEIGHTS names, in checkpoints/ of a clone of the
repository, in the package captioner-weights and in the cache.
"""

from __future__ import annotations

from typing import Any

from captioner import __version__

READS = "from"


def configure(parser: Any) -> None:
    """Declare the options."""
    about = "files, folders or http(s) addresses of weights, which are checked and copied into the cache"
    parser.add_argument("--from", nargs="+", type=str, help=about)


def run(options: Any) -> None:
    """Fill the cache, or print a line for each file."""
    from captioner.models.weights import add_to_cache, find_weights, known_digests, places, sha256

    for source in options["from"] or ():
        for path in add_to_cache(source):
            print(f"{path.name} of captioner {__version__}, checked by its SHA-256, is now {path}")
    if options["from"]:
        return
    for name, shipped in known_digests().items():
        for place, path in places(name):
            if path.is_file():
                digest = sha256(path)
                whose = "that" if digest == shipped else "not that"
                print(f"{name}, {path.stat().st_size / 1e6:.1f} MB, from {place}: {path}")
                print(f"    SHA-256 {digest}, {whose} of captioner {__version__}")
                break
        else:
            print(f"{name}: not found")
    for name in known_digests():
        find_weights(name)  # an error if there is none
