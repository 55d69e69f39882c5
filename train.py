"""Train a captioning model: the same as ``captioner train``."""

import sys

from captioner.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
