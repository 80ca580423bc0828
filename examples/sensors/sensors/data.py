"""Made-up vibration of machines, in four conditions: each has its own speed and loudness."""

import math

import torch

from sfl_flower import Samples

CONDITIONS = ["sound", "unbalanced", "loose", "bearing"]
LENGTH = 128  # readings of a window
RATE = 64.0  # readings a second


def machine(number, windows):
    """Return windows of one machine, floats [N, 1, LENGTH], and the condition of each."""
    draw = torch.Generator().manual_seed(number)
    speed = 2.0 + 2.0 * torch.rand((), generator=draw)  # turns a second
    loudness = 0.7 + 0.6 * torch.rand((), generator=draw)
    y = torch.arange(windows) % len(CONDITIONS)
    start = torch.rand(windows, 1, generator=draw)  # where in a turn a window begins
    turns = start + speed * torch.arange(LENGTH) / RATE

    def wave(harmonic):
        return torch.sin(2 * math.pi * harmonic * turns)

    hits = torch.exp(-20.0 * torch.remainder(3.6 * turns, 1.0))  # a ball over a scratch
    loose = 0.4 * wave(1) + 0.5 * wave(2) + 0.4 * wave(3)
    kinds = torch.stack([0.4 * wave(1), 1.2 * wave(1), loose, wave(1) * hits])
    noise = 0.3 * torch.randn(windows, LENGTH, generator=draw)
    x = loudness * (kinds[y, torch.arange(windows)] + noise)
    return Samples(x.unsqueeze(1), y)
