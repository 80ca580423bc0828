"""A bare loop in a process of its own, which works only while it is asked to.

Both sides of a comparison then see the same machine in the same seconds: the loop runs between the
rounds of a simulation, while Ray's workers are idle.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import torch

__all__ = ["Worker", "answer"]


def answer(pipe: Connection, jobs: Mapping[str, Callable[[], object]]) -> None:
    """Do what a pipe asks for, "JOB THREADS", and answer its seconds, until it says "end"."""
    while (asked := pipe.recv_bytes()) != b"end":
        job, threads = asked.decode().split()
        torch.set_num_threads(int(threads))
        start = perf_counter()
        jobs[job]()
        pipe.send_bytes(str(perf_counter() - start).encode())


class Worker:
    """A process that serves jobs.

    Parameters
    ----------
    serve : callable
        ``serve(pipe, *args)``, which calls `answer`; a function of a module.
    args
        Its further arguments.
    """

    def __init__(self, serve: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, *args), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def seconds(self, job: str, threads: int) -> float:
        """Run one of the jobs and return its seconds."""
        self._pipe.send_bytes(f"{job} {threads}".encode())
        return float(self._pipe.recv_bytes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.send_bytes(b"end")
        self._process.join(10)
