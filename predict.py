"""Caption images: the same as ``captioner predict``."""

import sys

from captioner.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
