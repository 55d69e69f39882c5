"""``python predict.py PHOTO`` against a minimal script that runs a ResNet on it, each in a fresh process.

The script imports torch and torchvision, builds resnet50, loads checkpoints/resnet50_v1.safetensors into it, opens the
image with Pillow and runs it once; it has no decoder, no search, no options and no caption. Both read files
that are in the page cache after the warm-up.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from ratios import ROOT, median, rounds_argument, take_turns, verdict

from captioner.config import ModelConfig
from captioner.data.vocabulary import Vocabulary
from captioner.models.captioner import Captioner
from captioner.models.encoder import weights_digest, weights_file

LIMIT = 0.9
PHOTO = ROOT / "data" / "photos" / "cat.jpg"
LEAST = """
import sys
import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

net = torchvision.models.resnet50(weights=None)
state = load_file(sys.argv[1])
net.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
net.eval()
image = np.array(Image.open(sys.argv[2]).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
x = torch.from_numpy(image).permute(2, 0, 1).float() / 255
x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
with torch.inference_mode():
    print(int(net(x.unsqueeze(0)).argmax()))
"""


def random_checkpoint(file: Path) -> None:
    """An untrained model of the default size."""
    torch.manual_seed(0)
    config = ModelConfig()
    words = Vocabulary([f"w{i}" for i in range(9_483)])
    Captioner(config, words, None, weights_digest(config.encoder)).save(file)


def main() -> bool:
    """Print the ratio; whether it is within the limit."""
    parser = rounds_argument(__doc__, 7)
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one; a random one where that is missing")
    options = parser.parse_args()

    def fresh(*command: object) -> None:
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    with tempfile.TemporaryDirectory() as name:
        checkpoint = options.checkpoint or ROOT / "checkpoints" / "captioner.safetensors"
        if not checkpoint.exists():
            checkpoint = Path(name, "random.safetensors")
            random_checkpoint(checkpoint)
        sides = {
            "predict.py": lambda: fresh("predict.py", PHOTO, "--checkpoint", checkpoint),
            "least": lambda: fresh("-c", LEAST, weights_file("resnet50_v1"), PHOTO),
        }
        times = take_turns(sides, options.rounds)
    for side, values in times.items():
        print(f"{side:10} {median(values):.2f} s with {checkpoint.name}")
    return verdict("predict.py / least, time", times["predict.py"], times["least"], "<=", LIMIT)


if __name__ == "__main__":
    sys.exit(not main())
