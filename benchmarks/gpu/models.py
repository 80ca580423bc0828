"""Models of the sizes that the GPU check trains, written out in torch alone, on random inputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.nn import functional

from sfl_flower.data import Samples
from sfl_flower.task import SplitTask

__all__ = ["MODELS", "Model"]

CLASSES = 2


@dataclass(frozen=True)
class Model:
    """A task on random inputs, which each node has of its own, and the size of a mini-batch.

    Attributes
    ----------
    name : str
        Part of the figures' names.
    task : SplitTask
        The learning problem; labels are as random as inputs.
    batch : int
        Samples of a mini-batch, all that a node has.
    part : int
        Samples of a micro-batch.
    what : str
        Says what it is, in a line.
    """

    name: str
    task: SplitTask
    batch: int
    part: int
    what: str


class _Residual(nn.Module):
    """A basic block of ResNet-18; GroupNorm, for micro-batches have no statistics of a batch."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(min(32, width), width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(min(32, width), width)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.short = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(found)) + self.short(x))


def resnet(width: int = 64, classes: int = 10) -> nn.Module:
    """Return ResNet-18 with the stem for images of 32 x 32."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, width, 3, 1, 1, bias=False),
        norm1=nn.GroupNorm(min(32, width), width),
        relu=nn.ReLU(),
    )
    before = width
    for number in range(1, 5):
        after = width << (number - 1)
        layers[f"layer{number}"] = nn.Sequential(
            _Residual(before, after, 1 if number == 1 else 2), _Residual(after, after, 1)
        )
        before = after
    layers |= OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    layers["fc"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


@dataclass(frozen=True)
class Form:
    """Sizes of a decoder.

    Attributes
    ----------
    vocabulary, width, blocks, heads, key_heads, inner : int
        As the names say; `inner` of the feed-forward layer.
    positions : int
        Learned positions, 0 for rotary ones, which come with RMSNorm and a gated SiLU.
    """

    vocabulary: int
    width: int
    blocks: int
    heads: int
    key_heads: int
    inner: int
    positions: int = 0


class _Embedded(nn.Module):
    """Token and position embeddings, frozen, as in fine-tuning."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.tokens = nn.Embedding(form.vocabulary, form.width)
        self.places = nn.Embedding(form.positions, form.width) if form.positions else None
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.tokens(ids)
        if self.places is not None:
            found = found + self.places(torch.arange(ids.shape[1], device=ids.device))
        return found


class _Block(nn.Module):
    """A decoder's block: of GPT-2 with learned positions, of Llama without."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        plain, width = form.positions > 0, form.width
        self.heads, self.key_heads, self.rotary = form.heads, form.key_heads, not plain
        self.size = width // form.heads
        norm = nn.LayerNorm if plain else nn.RMSNorm
        self.norm1, self.norm2 = norm(width), norm(width)
        self.q = nn.Linear(width, width, bias=plain)
        self.k, self.v = (
            nn.Linear(width, form.key_heads * self.size, bias=plain) for _ in range(2)
        )
        self.o = nn.Linear(width, width, bias=plain)
        self.up, self.down = (
            nn.Linear(width, form.inner, plain),
            nn.Linear(form.inner, width, plain),
        )
        self.gate = None if plain else nn.Linear(width, form.inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        seen = self.norm2(x)
        if self.gate is None:
            return torch.add(x, self.down(functional.gelu(self.up(seen), approximate="tanh")))
        return torch.add(x, self.down(functional.silu(self.gate(seen)) * self.up(seen)))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (count, self.size)).transpose(1, 2)
            for layer, count in (
                (self.q, self.heads),
                (self.k, self.key_heads),
                (self.v, self.key_heads),
            )
        )
        if self.rotary:
            q, k = (_rotated(part) for part in (q, k))
        if (times := self.heads // self.key_heads) > 1:
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        found: Tensor = self.o(mixed.transpose(1, 2).flatten(-2))
        return found


def _rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * rates
    first, second = x.chunk(2, dim=-1)
    sine, cosine = angles.sin(), angles.cos()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class _Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def decoder(form: Form) -> nn.Module:
    """Return a decoder that classifies texts by their last position."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(embed=_Embedded(form))
    for number in range(form.blocks):
        layers[f"block{number}"] = _Block(form)
    norm = nn.LayerNorm if form.positions else nn.RMSNorm
    layers |= OrderedDict(norm=norm(form.width), last=_Last())
    layers["head"] = nn.Linear(form.width, CLASSES)
    return nn.Sequential(layers)


def _images(count: int, classes: int, context: Context | None = None) -> Samples:
    draw = torch.Generator().manual_seed(_number(context))
    x = torch.randn(count, 3, 32, 32, generator=draw)
    return Samples(x, torch.randint(classes, (count,), generator=draw))


def _texts(count: int, tokens: int, vocabulary: int, context: Context | None = None) -> Samples:
    draw = torch.Generator().manual_seed(_number(context))
    ids = torch.randint(vocabulary, (count, tokens), generator=draw)
    return Samples(ids, torch.randint(CLASSES, (count,), generator=draw))


def _number(context: Context | None) -> int:
    """Return whose samples are asked for: a node's own, else those of the test set."""
    return 0 if context is None else 1 + int(context.node_config["partition-id"])


GPT2 = Form(50_257, 768, 12, 12, 12, 3072, 1024)
SMOLLM2 = Form(49_152, 576, 30, 9, 3, 1536)
SMALL = {"gpt2": Form(97, 24, 3, 4, 4, 48, 16), "smollm2": Form(97, 24, 3, 4, 2, 48)}


def resnet18(small: bool) -> Model:
    """Return ResNet-18 on images of 32 x 32, cut behind layer2."""
    batch, part, width = (8, 4, 8) if small else (256, 32, 64)
    data = partial(_images, batch, 10)
    task = SplitTask(
        name="gpu-resnet18", model=partial(resnet, width), cut="layer2",
        train=lambda context: data(context=context), test=data,
        classes=10, token=f"gpu-resnet18-{width}",
    )  # fmt: skip
    what = f"ResNet-18 of width {width}, GroupNorm, cut behind layer2, batch {batch} x 3x32x32"
    return Model("resnet18", task, batch, part, what)


def _language(name: str, form: Form, behind: int, small: bool) -> Model:
    form = SMALL[name] if small else form
    batch, part, tokens, behind = (4, 2, 12, 1) if small else (8, 2, 256, behind)
    data = partial(_texts, batch, tokens, form.vocabulary)
    task = SplitTask(
        name=f"gpu-{name}", model=partial(decoder, form), cut=f"block{behind - 1}",
        train=lambda context: data(context=context), test=data, classes=CLASSES,
        token=f"gpu-{name}-{form.width}",
    )  # fmt: skip
    what = (
        f"a decoder of {name}'s size, {form.blocks} blocks of width {form.width}, embeddings "
        f"frozen, cut behind block {behind}, batch {batch} x {tokens} tokens"
    )
    return Model(name, task, batch, part, what)


def gpt2(small: bool) -> Model:
    """Return a decoder of GPT-2's size, cut behind a quarter of its blocks."""
    return _language("gpt2", GPT2, 3, small)


def smollm2(small: bool) -> Model:
    """Return a decoder of SmolLM2-135M's size, cut behind a third of its blocks."""
    return _language("smollm2", SMOLLM2, 10, small)


MODELS = (resnet18, gpt2, smollm2)
"""Each takes whether it is to be small."""
