"""ResNet-50 as first published, without its head: the encoder of the shipped model."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Three convolutions and the shortcut beside them (He et al. 2015, figure 5); (B, channels, h, w) → (B, 4W, …)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


def resnet50_v1() -> nn.Module:
    """The network (B, 3, H, W) → (B, 2048, H / 32, W / 32), with torchvision's names.

    The stride of a stage is in the 1×1 convolution of its first block (He et al. 2015, table 1); torchvision's
    ``resnet50`` is v1.5, with the stride in the 3×3 convolution. To import torchvision takes as long as torch.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        first = Bottleneck(channels, width, stride=1 if stage == 0 else 2)
        channels = 4 * width
        others = (Bottleneck(channels, width, stride=1) for _ in range(blocks - 1))
        layers[f"layer{stage + 1}"] = nn.Sequential(first, *others)
    return nn.Sequential(layers)
