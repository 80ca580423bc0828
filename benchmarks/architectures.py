"""What a benchmark of cuts needs of an architecture, and tiny models of torchvision's.

A family of architectures is a tuple of `Architecture`; `benchmarks/cuts.py` joins them, and whoever
adds a family adds its tuple there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import convnext, efficientnet, mobilenetv3, resnet, swin_transformer, vgg

from sfl_flower.data import seeded_torch

__all__ = ["TORCHVISION", "Architecture", "images", "lively"]

SIDE, CLASSES = 32, 5
_LARGE = 2**20


def images(count: int = 2, side: int = SIDE) -> Tensor:
    """Draw a batch of images, float32 [count, 3, side, side]."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def forward(model: nn.Module, x: Tensor) -> Any:
    """Call the model as its halves are called."""
    return model(x)


@dataclass(frozen=True)
class Architecture:
    """A model of one architecture.

    Attributes
    ----------
    name : str
        Names the figure; a snake case identifier.
    build : callable
        ``build()`` makes the model.
    named : tuple of str
        Layers that a person would cut behind, from input to output; all must be legal cuts.
    inside : tuple of str
        Layers inside a block, behind which no single tensor crosses.
    inputs : callable
        ``inputs()`` makes a batch.
    whole : callable
        ``whole(model, inputs)`` is what the halves must give.
    only : tuple of str
        The cuts that are tried; every legal one where it is empty.
    """

    name: str
    build: Callable[[], nn.Module]
    named: tuple[str, ...]
    inside: tuple[str, ...] = ()
    inputs: Callable[[], Tensor] = images
    whole: Callable[[nn.Module, Tensor], Any] = forward
    only: tuple[str, ...] = ()

    def model(self) -> nn.Module:
        """Build the model in eval mode, the same every time, no two values of it equal by rule."""
        with seeded_torch(0):
            return lively(self.build()).eval()


def lively(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter and every statistic of ``model`` a value of its own, in place.

    Fresh models have equal values in many places (BatchNorm's statistics and scales, the scale of a
    ConvNeXt block, the class token), behind which a mix-up would hide.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > _LARGE:  # a matrix, of random values already
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise, alpha=0.02)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(3)
    return model


def _vgg(batch_norm: bool) -> nn.Module:
    # The classifier of torchvision's is 120 million weights whatever the features are.
    with torch.device("meta"):
        model: nn.Module = models.VGG(nn.Identity(), num_classes=CLASSES, init_weights=False)
    model.features = vgg.make_layers([8, "M", 8, 16, "M"], batch_norm)
    model.classifier = nn.Sequential(
        nn.Linear(16 * 7 * 7, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, CLASSES)
    )
    return model


def _mobilenet() -> nn.Module:
    block = partial(mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1)
    blocks = [
        block(8, 3, 8, 8, True, "RE", 1),
        block(8, 3, 16, 16, False, "RE", 2),
        block(16, 5, 32, 16, True, "HS", 1),
    ]
    model: nn.Module = models.MobileNetV3(blocks, last_channel=24, num_classes=CLASSES)
    return model


def _efficientnet(fused: bool) -> nn.Module:
    block = partial(efficientnet.MBConvConfig, width_mult=1.0, depth_mult=1.0)
    if fused:
        first = efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1)
        second = efficientnet.FusedMBConvConfig(4, 3, 2, 8, 16, 2)
    else:
        first, second = block(1, 3, 1, 8, 8, 1), block(4, 3, 2, 8, 16, 2)
    model: nn.Module = models.EfficientNet(
        [first, second, block(4, 3, 2, 16, 16, 1)],
        dropout=0.2,
        num_classes=CLASSES,
        last_channel=32,
    )
    return model


def _convnext() -> nn.Module:
    blocks = [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 1)]
    model: nn.Module = models.ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=CLASSES)
    return model


def _vit(representation: int | None) -> nn.Module:
    model: nn.Module = models.VisionTransformer(
        image_size=SIDE,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout=0.1,
        attention_dropout=0.1,
        num_classes=CLASSES,
        representation_size=representation,
    )
    return model


def _swin(second: bool) -> nn.Module:
    version: dict[str, Any] = {}
    if second:
        version["block"] = swin_transformer.SwinTransformerBlockV2
        version["downsample_layer"] = swin_transformer.PatchMergingV2
    pairs = [[2, 2] for _ in range(3)]
    model: nn.Module = models.SwinTransformer(
        [4, 4], 16, *pairs, stochastic_depth_prob=0.2, num_classes=CLASSES, **version
    )
    return model


def _names(listed: str, prefix: str = "") -> tuple[str, ...]:
    return tuple(prefix + name for name in listed.split())


_RESNET = _names(
    "conv1 bn1 relu maxpool layer1.0 layer1 layer2.0 layer2.1 layer2 layer3 layer4 avgpool"
)
_VIT = _names(
    "conv_proj encoder.dropout encoder.layers.encoder_layer_0 encoder.layers.encoder_layer_1 "
    "encoder.layers.encoder_layer_2 encoder.layers encoder.ln encoder"
)
_IN_VIT = _names("ln_1 self_attention dropout ln_2 mlp", "encoder.layers.encoder_layer_1.")
_EFFICIENT = _names(
    "features.0 features.1.0 features.1 features.2.0 features.2.1 features.2 features.3 features.4 "
    "features avgpool classifier.0"
)
_IN_EFFICIENT = _names("features.2.1.block features.2.1.stochastic_depth")
_CONVNEXT = _names(
    "features.0 features.1.0 features.1.1 features.1 features.2 features.3.0 features.3 features "
    "avgpool classifier.0 classifier.1"
)
_SWIN = _names(
    "features.0 features.1.0 features.1.1 features.1 features.2 features.3.0 features.3.1 "
    "features.3 norm avgpool flatten"
)
_IN_SWIN = _names("features.1.1.attn features.1.1.mlp features.3.0.norm1")

TORCHVISION = (
    Architecture(
        "resnet_basic",
        lambda: resnet.ResNet(resnet.BasicBlock, [1, 2, 1, 1], num_classes=CLASSES),
        _RESNET,
        ("layer2.0.downsample", "layer2.1.conv1", "layer2.1.bn2"),
    ),
    Architecture(
        "resnet_bottleneck",
        lambda: resnet.ResNet(
            resnet.Bottleneck, [1, 2, 1, 1], num_classes=CLASSES, width_per_group=8
        ),
        _RESNET,
        ("layer2.0.downsample", "layer2.1.conv2", "layer2.1.bn3"),
    ),
    Architecture(
        "vgg",
        lambda: _vgg(batch_norm=False),
        (*(f"features.{index}" for index in range(8)), "features", "avgpool", "classifier.2"),
    ),
    Architecture(
        "vgg_bn",
        lambda: _vgg(batch_norm=True),
        (*(f"features.{index}" for index in range(11)), "features", "avgpool", "classifier.2"),
    ),
    Architecture(
        "mobilenet_v3",
        _mobilenet,
        (*(f"features.{index}" for index in range(5)), "features", "avgpool", "classifier.0"),
        ("features.1.block", "features.3.block.1", "features.3.block.2.avgpool"),
    ),
    Architecture("efficientnet", lambda: _efficientnet(False), _EFFICIENT, _IN_EFFICIENT),
    Architecture("efficientnet_v2", lambda: _efficientnet(True), _EFFICIENT, _IN_EFFICIENT),
    Architecture(
        "convnext",
        _convnext,
        _CONVNEXT,
        ("features.1.1.block", "features.1.1.stochastic_depth"),
    ),
    Architecture("vit", lambda: _vit(None), _VIT, _IN_VIT),
    Architecture("vit_with_representation", lambda: _vit(8), (*_VIT, "heads.act"), _IN_VIT),
    Architecture("swin", lambda: _swin(second=False), _SWIN, _IN_SWIN),
    Architecture("swin_v2", lambda: _swin(second=True), _SWIN, _IN_SWIN),
)
"""The classification families of torchvision, each at its smallest."""
