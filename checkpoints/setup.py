"""The files of this folder as captioner-weights, a package of data with the version of captioner: make wheel."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE.parent / "captioner/__init__.py").read_text("utf-8"), re.MULTILINE)

setup(
    name="captioner-weights",
    version=VERSION[1],
    description="The weights of captioner: its shipped model, for research, and the ImageNet ResNet-50 that it needs",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=["captioner_weights"],
    package_dir={"captioner_weights": "."},
    package_data={"captioner_weights": ["*.safetensors", "README.md"]},
)
