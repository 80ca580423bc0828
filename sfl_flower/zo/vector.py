"""The zeroth-order-trained parameters of a module, as one flat float32 vector."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError
from sfl_flower.zo.directions import Direction, Directions
from sfl_flower.zo.layers import Moved, lay_out, watching

__all__ = ["ParameterVector", "name_and_shape", "trained_names"]

_MAGIC = b"SFLm\x01"
_LARGE_LAYER = 1 << 20
"""Elements from which on a layer moves by itself on a GPU: for fewer, to start the kernels of each
layer costs more than their memory is worth."""


class ParameterVector:
    """Lays the trainable parameters of a module over one buffer, in canonical order.

    The current values are copied into `anchor`, and each parameter's storage becomes a view of
    it. A probe writes ``anchor + scale * u`` into other memory and points the parameters there,
    so restoring is pointing back: nothing is ever subtracted, and nothing drifts. What a layer
    holds is written when the layer is called, and is gone when the next one is.

    Parameters
    ----------
    module : nn.Module
        Holds the parameters. Buffers and frozen parameters stay as they are, in any dtype.
    names : sequence of str, optional
        Qualified names to train; every parameter with ``requires_grad`` when omitted. The order
        given does not matter: canonical order is sorted by name. No name at all gives an empty
        vector, which a journal without updates may follow.
    layers : iterable of nn.Module
        Modules of `module` that are called, and whose parameters nothing reads but these calls
        (`sfl_flower.split.called_layers`), in the order of the calls. A probe moves their
        parameters when they are called, so that it takes the memory of the largest of them; all
        others, and the smallest ones, it moves at once. On a GPU layers below a million elements
        are among the others.

    Attributes
    ----------
    names, shapes : tuple
        Canonical order of the tensors, tuples of equal length.
    size : int
        Number of elements ``d``.
    anchor : Tensor
        Flat float32 vector of length ``size``, on the parameters' device.

    Raises
    ------
    ConfigError
        If names are omitted and nothing is trainable, a name is unknown, or the parameters are not
        all dense float32 on one device.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str] | None = None,
        layers: Iterable[nn.Module] = (),
    ) -> None:
        chosen = _select(module, names)
        self.names = tuple(name for name, _ in chosen)
        self._parameters = [parameter for _, parameter in chosen]
        self.shapes = tuple(tuple(parameter.shape) for parameter in self._parameters)
        self.size = sum(parameter.numel() for parameter in self._parameters)
        with torch.inference_mode(False), torch.no_grad():
            flat = [parameter.detach().reshape(-1) for parameter in self._parameters]
            self.anchor = torch.cat(flat) if flat else torch.empty(0)
        self._anchor_views = self._views(self.anchor)
        self._work: Tensor | None = None
        self._probing = self._watched = False
        self._moved: Moved | None = None
        for parameter, view in zip(self._parameters, self._anchor_views, strict=True):
            parameter.data = view
        if self.anchor.device.type != "cpu":
            layers = [layer for layer in layers if _size(layer) >= _LARGE_LAYER]
        self._parts, self._before = lay_out(self._parameters, layers)
        self._all = lay_out(self._parameters, ())[1]
        self._most = max((part.size for part in self._parts), default=0)
        for part in (*self._parts, self._before, self._all):
            part.stand_on(self.anchor)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The tensors of the module that the vector holds, in canonical order."""
        return tuple(self._parameters)

    def load(self, flat: Tensor) -> None:
        """Copy a flat float32 vector of length `size` into the anchor.

        Raises
        ------
        ConfigError
            If shape or dtype differ, or a probe is under way.
        """
        if flat.shape != self.anchor.shape or flat.dtype != torch.float32:
            raise ConfigError(
                f"load needs a float32 vector of {self.size} elements; it got {flat.dtype} of "
                f"shape {tuple(flat.shape)}."
            )
        if self._probing:
            raise ConfigError("load was called inside a probe; leave the probe first.")
        with torch.no_grad():
            self.anchor.copy_(flat)

    def directions(self, run_key: bytes, law: str) -> Directions:
        """Return the directions of a run and law over these parameters."""
        return Directions(run_key, law, self.shapes)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector of length `size` by name, in the tensors' shapes."""
        return dict(zip(self.names, self._views(flat), strict=True))

    def manifest(self) -> bytes:
        """Return names and shapes in canonical order, as bytes (format: ``docs/journal.md``)."""
        parts = [_MAGIC, struct.pack("<I", len(self.names))]
        for name, shape in zip(self.names, self.shapes, strict=True):
            parts.append(name_and_shape(name, shape))
        return b"".join(parts)

    @contextmanager
    def probe(self, direction: Direction, scale: float, at_once: bool = False) -> Iterator[None]:
        """Inside, forwards read ``anchor + scale * u``; after, the anchor again.

        The anchor is not written. It is back exactly, whatever is raised inside.

        Parameters
        ----------
        direction : Direction
            u, of the vector's shapes.
        scale : float
            Rounded to float32.
        at_once : bool
            Whether all parameters move before the first forward, those of layers too, into memory
            that whoever probes may write.

        Raises
        ------
        ConfigError
            If the direction is one over other shapes, or a probe is under way.
        """
        if direction.shapes != self.shapes:
            raise ConfigError(
                f"The direction has {direction.size} elements in {len(direction.shapes)} tensors, "
                f"the parameters {self.size} in {len(self.shapes)}, or their shapes differ; make "
                "it with ParameterVector.directions."
            )
        if self._probing:
            raise ConfigError("A probe is under way; probes of one module cannot be nested.")
        before = self._all if at_once else self._before
        if self._work is None or len(self._work) < before.size:
            with torch.inference_mode(False):
                self._work = self.anchor.new_empty(before.size)
        moved = Moved(self.anchor, direction.times(scale), self._most)
        self._probing = True
        try:
            moved.move(before, self._work[: before.size])
            with nullcontext() if at_once else self.watched():
                self._moved = None if at_once else moved
                yield
        finally:
            self._moved = None
            before.put_back()
            moved.put_back()
            self._probing = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the layers over several probes, each of which would do so for itself."""
        if self._watched or not self._parts:
            yield
            return
        self._watched = True
        try:
            with watching(self._parts, lambda: self._moved):
                yield
        finally:
            self._watched = False

    def _views(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([parameter.numel() for parameter in self._parameters])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


def _size(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def name_and_shape(name: str, shape: Sequence[int]) -> bytes:
    """Return a tensor's name and shape as a manifest has them."""
    encoded = name.encode("utf-8")
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<I", len(encoded)) + encoded + sizes


def trained_names(module: nn.Module, under: str = "") -> list[str]:
    """Return the names of the trainable parameters that begin with ``under``."""
    named = module.named_parameters()
    return [name for name, p in named if p.requires_grad and name.startswith(under)]


def _select(module: nn.Module, names: Sequence[str] | None) -> list[tuple[str, nn.Parameter]]:
    known = dict(module.named_parameters())
    if names is None and not (names := trained_names(module)):
        raise ConfigError(
            "The module has no trainable parameter; set requires_grad on what is to be trained."
        )
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"Unknown parameters {unknown}; the module has {sorted(known)}.")
    if len(set(names)) != len(names):
        raise ConfigError(f"A parameter is named twice in {sorted(names)}; name each once.")
    chosen = [(name, known[name]) for name in sorted(names)]
    devices = {parameter.device for _, parameter in chosen}
    if len(devices) > 1:
        raise ConfigError(f"The parameters lie on {devices}; move the module to one device.")
    for name, parameter in chosen:
        if parameter.dtype != torch.float32 or parameter.layout != torch.strided:
            raise ConfigError(
                f"Parameter {name} is {parameter.dtype}, {parameter.layout}; zeroth-order "
                "training needs dense float32 masters (a probe is lost in half precision). "
                "Use .float() on it, or freeze it."
            )
    if chosen and sum(parameter.numel() for _, parameter in chosen) == 0:
        raise ConfigError("The trainable parameters have no element; nothing can be trained.")
    return chosen
