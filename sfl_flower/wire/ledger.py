"""The ledger: what a run cost on the wire, by category and direction.

Every message states its payload by category; what Flower's records hold beyond that (array
headers, names, settings) is booked as *control*, so the sum over the categories is the number of
bytes in the records of the message.  `docs/ledger.md` reconciles it with Flower's encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flwr.app import RecordDict

from sfl_flower.errors import WireError

__all__ = ["CATEGORIES", "Ledger", "content_bytes"]

Way = Literal["up", "down"]

CATEGORIES = (
    "smashed",
    "labels",
    "gradients",
    "scalars",
    "keys",
    "weights",
    "auxiliary",
    "moments",
    "secure",
    "control",
)


def content_bytes(content: RecordDict) -> int:
    """Count the bytes that the records of a message hold, names and array headers included.

    Numbers count 8 bytes, truth values 1, texts their UTF-8 form.
    """
    total = 0
    for arrays in content.array_records.values():
        total += sum(len(name.encode()) + len(array.data) for name, array in arrays.items())
    scalars: list[Mapping[str, Any]] = [
        *content.config_records.values(),
        *content.metric_records.values(),
    ]
    for values in scalars:
        total += sum(len(name.encode()) + _scalar_bytes(value) for name, value in values.items())
    return total


def _scalar_bytes(value: Any) -> int:
    # Flower's own count refuses empty texts, which a client may well send.
    if isinstance(value, list):
        return sum(_scalar_bytes(item) for item in value)
    if isinstance(value, (str, bytes)):
        return len(value.encode() if isinstance(value, str) else value)
    return 1 if isinstance(value, bool) else 8


@dataclass
class Ledger:
    """Bytes by category and direction, exchanges and samples of one run.

    Attributes
    ----------
    up, down : dict[str, int]
        Bytes from clients to the server and back, one entry per name in `CATEGORIES`.
    exchanges : int
        Requests that were answered, summed over clients.
    messages_up, messages_down : int
        Messages each way; a request without an answer counts down only.
    samples : int
        Training samples that clients ran in replies that were used.
    client_peak_bytes : int
        Largest peak of memory allocated by torch that a client reported, 0 if none did.
    client_flops : float
        Floating point operations of a client per training sample, as reported in the round that
        was metered for it, 0 if none was.
    """

    up: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    down: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    exchanges: int = 0
    messages_up: int = 0
    messages_down: int = 0
    samples: int = 0
    client_peak_bytes: int = 0
    client_flops: float = 0.0

    def record(self, way: Way, payload: Mapping[str, int], total: int) -> None:
        """Book one message.

        Parameters
        ----------
        way : {"up", "down"}
            Up is from a client to the server.
        payload : Mapping[str, int]
            Bytes by category, `control` left out.
        total : int
            Bytes of the message's records (`content_bytes`); the rest is control.
        """
        account = self.up if way == "up" else self.down
        rest = total - sum(payload.values())
        if rest < 0:
            raise WireError(
                f"A message of {total} bytes claims a payload of {total - rest} bytes; a payload "
                "is at most the message, so the message's own accounting is wrong."
            )
        for category, count in payload.items():
            account[category] += count
        account["control"] += rest
        if way == "up":
            self.messages_up += 1
            self.exchanges += 1
        else:
            self.messages_down += 1

    @property
    def bytes_up(self) -> int:
        """Bytes from clients to the server."""
        return sum(self.up.values())

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to clients."""
        return sum(self.down.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `ledger.json`."""
        return {
            "bytes": {name: {"up": self.up[name], "down": self.down[name]} for name in CATEGORIES},
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "exchanges": self.exchanges,
            "messages_up": self.messages_up,
            "messages_down": self.messages_down,
            "samples": self.samples,
            "client_peak_bytes": self.client_peak_bytes,
            "client_flops": self.client_flops,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """Rebuild a ledger from `to_dict`."""
        none = {"up": 0, "down": 0}  # of a category that an older run did not know
        table = {name: values["bytes"].get(name, none) for name in CATEGORIES}
        return cls(
            up={name: int(table[name]["up"]) for name in CATEGORIES},
            down={name: int(table[name]["down"]) for name in CATEGORIES},
            **{
                name: int(values[name])
                for name in (
                    "exchanges",
                    "messages_up",
                    "messages_down",
                    "samples",
                    "client_peak_bytes",
                )
            },
            client_flops=float(values["client_flops"]),
        )
