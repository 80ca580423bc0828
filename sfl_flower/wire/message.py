"""What every message can do: become the content of a Flower message, come back, be counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from flwr.app import RecordDict

from sfl_flower.errors import SflError, WireError
from sfl_flower.wire.draft import PLAIN, Draft, Encodings
from sfl_flower.wire.fields import Codec, flag, text, whole
from sfl_flower.wire.reader import Reader

__all__ = ["Asked", "Message", "Part", "Reply", "Request"]


@dataclass(frozen=True)
class Part:
    """Fields that travel together; each says in its annotation how.

    A field may be a part itself, whose fields then travel beside its own.  A field that is None
    does not travel, nor does a number, a truth value or a text that is the field's default.
    """

    STANDING: ClassVar[bool] = False
    """Whether a request that has this part says the same in it in every round."""

    def write(self, draft: Draft) -> None:
        """Add the fields to a message."""
        told = vars(self)
        for field in self._fields():
            value = told[field.attribute]
            if value is not None and field.codec.travels(told) and not field.implies(told, value):
                before, draft.standing = draft.standing, draft.standing or field.codec.standing
                field.codec.write(draft, field.name, value)
                draft.standing = before

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read and check each field, in the order of the class."""
        told: dict[str, Any] = {}
        for field in cls._fields():
            came, implied = reader.has(field.name), field.implied(told)
            if field.optional and not came:
                told[field.attribute] = None
            elif implied is not None and not came:
                told[field.attribute] = implied
            elif field.codec.travels(told):
                before, reader.standing = reader.standing, reader.standing or field.codec.standing
                told[field.attribute] = field.codec.read(reader, field.name)
                reader.standing = before
        make: Callable[..., Self] = cls
        return make(**told)

    @classmethod
    def _fields(cls) -> tuple[_Field, ...]:
        part: Any = cls  # mypy takes no class of frozen dataclasses for hashable
        return _declared(part)


@dataclass(frozen=True)
class Message(Part):
    """Everything that crosses the network at once.

    Whether a reply brings what was asked for (how many samples, how many probes) is for
    `sfl_flower.wire.answer.check_answer`.
    """

    WHAT: ClassVar[str]
    """What errors call it."""
    SPOKEN: ClassVar[bool] = False
    """Whether the two sides have agreed on a protocol before, so that it need not say it."""

    def draft(self, encodings: Encodings = PLAIN, held: Collection[bytes] = ()) -> Draft:
        """Return the written message: its content, and its bytes by category.

        Parameters
        ----------
        encodings : Encodings
            How smashed data and cut gradients travel; a message that says so itself sets it.
        held : collection of bytes
            Names of what the receiver is known to hold, see `Draft`.

        Raises
        ------
        WireError
            If a value cannot be sent in that encoding.
        """
        draft = Draft(encodings, self.SPOKEN, held)
        self.write(draft)
        return draft

    def to_content(self) -> RecordDict:
        """Return the content of the Flower message."""
        return self.draft().content()

    @classmethod
    def from_content(cls, content: RecordDict) -> Self:
        """Read and check the content of a Flower message; see `from_reader`."""
        return cls.from_reader(Reader(content, cls.WHAT))

    @classmethod
    def from_reader(cls, reader: Reader) -> Self:
        """Read and check what arrived; the reader then knows its bytes by category.

        Raises
        ------
        WireError
            If anything is missing, not as declared, or was not asked for.
        """
        reader.begin(cls.WHAT, cls.SPOKEN)
        try:
            message = cls.read(reader)
            reader.done()
            message.check(reader)
        except SflError:
            raise
        except Exception as error:  # what arrived may be anything, and so may what it provokes
            raise WireError(
                f"A {cls.WHAT} message cannot be read ({type(error).__name__}: {error})."
            ) from error
        return message

    def check(self, reader: Reader) -> None:
        """Raise `reader.fail` where fields that are legal do not fit one another."""


class Asked(NamedTuple):
    """What a request asks for, beyond what its reply repeats (round, step).

    Attributes
    ----------
    batches : int or None
        Mini-batches of smashed data, each of at most `largest_batch`; None for any.
    rows : int
        Rows of smashed data for each sample.
    scalars : tuple of int or None
        Shape of the scalars; None where they are not asked for.
    steps : int or None
        Local steps, which decide how many samples the reply stands for; None without.
    weights : bool or None
        Whether the reply brings weights; None where the method decides.
    """

    batches: int | None = None
    rows: int = 1
    scalars: tuple[int, ...] | None = None
    steps: int | None = None
    weights: bool | None = None


@dataclass(frozen=True)
class Request(Message):
    """A message from the server to a client.

    What a name means in every request that has the field:

    - `round`, `batch_size`, `minibatches`: which batches to run; the client draws them from its
      own data;
    - `setup`: the run;
    - `optimizer`: the client optimiser and its settings of the round as canonical JSON;
    - `keep_state`: whether the optimiser's state of the last round is taken up;
    - `probing`: how many probes, along what, how long, and what is computed of them;
    - `meter`: what to measure.
    """

    ACTION: ClassVar[str]
    """What is asked; with the method's name it is Flower's type of the message."""
    ANSWER: ClassVar[str] = ""
    """`WHAT` of its reply where that has to be said: one exchange may hold several kinds."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.WHAT = f"'{cls.ACTION}' request"

    @classmethod
    def message_type(cls, method: str) -> str:
        """Return Flower's type of the message when this method sends it."""
        return f"train.{method}_{cls.ACTION}"

    @property
    def encodings(self) -> Encodings:
        """How smashed data and cut gradients travel, in the reply too."""
        setup: Any = vars(self).get("setup")
        return PLAIN if setup is None else setup.encodings

    def addressed(self, key: str) -> Self:
        """Return the request to the client with this key, of which its setup then tells."""
        told: Any = self
        return replace(told, setup=replace(told.setup, key=key)) if hasattr(told, "setup") else self

    def asks(self) -> Asked:
        """Return what the reply has to bring; `check_answer` holds it against that."""
        return Asked()


@dataclass(frozen=True)
class Reply(Message):
    """A message from a client to the server; `round` is the one asked for."""

    STATUS: ClassVar[str] = ""
    """What it says of itself, empty for an answer."""
    SPOKEN: ClassVar[bool] = True

    def examples(self) -> int:
        """Return what Flower's metric `num-examples` says where no field does."""
        return 0

    def write(self, draft: Draft) -> None:
        """Add the status and the fields to a message."""
        if self.STATUS:
            draft.setting("status", self.STATUS)
        draft.metric("num-examples", self.examples())
        super().write(draft)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read and check the status and each field."""
        if cls.STATUS:
            reader.text("status", (cls.STATUS,))
        elif reader.has("status"):
            raise reader.fail(f"has status={reader.text('status')[:80]!r}, expected an answer")
        return super().read(reader)


class _Field(NamedTuple):
    attribute: str
    name: str
    codec: Codec
    optional: bool
    default: Any

    def implied(self, told: Mapping[str, Any]) -> Any:
        """Return what is meant where the field did not come along; None where it has to."""
        if self.codec.implied is not None:
            return self.codec.implied(told)
        return self.default if isinstance(self.default, (bool, int, float, str)) else None

    def implies(self, told: Mapping[str, Any], value: Any) -> bool:
        """Tell whether a value is the one that is meant where none comes along."""
        implied = self.implied(told)
        return type(implied) is type(value) and np.array_equal(implied, value)


@cache  # annotations are read once per class
def _declared(part: type[Part]) -> tuple[_Field, ...]:
    hints = get_type_hints(part, include_extras=True)
    return tuple(_field(part, field, hints[field.name]) for field in fields(part))


_PLAIN = {bool: flag(), int: whole(), str: text()}


def _field(part: type[Part], field: Field[Any], hint: Any) -> _Field:
    attribute = field.name
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [kind for kind in choices if kind is not NoneType]
    codec = _codec(kinds[0]) if len(kinds) == 1 else None
    if codec is None:
        raise TypeError(
            f"{part.__name__}.{attribute} does not say how it travels; annotate it with a codec "
            "of sfl_flower.wire.fields."
        )
    name = codec.name or attribute.replace("_", "-")
    return _Field(attribute, name, codec, NoneType in choices, field.default)


def _codec(kind: Any) -> Codec | None:
    if get_origin(kind) is Annotated:
        return next((item for item in kind.__metadata__ if isinstance(item, Codec)), None)
    if isinstance(kind, type) and issubclass(kind, Part):
        return Codec(
            lambda reader, name: kind.read(reader),
            lambda draft, name, part: part.write(draft),
            standing=kind.STANDING,
        )
    return _PLAIN.get(kind)
