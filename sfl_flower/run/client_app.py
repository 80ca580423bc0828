"""The ClientApp of every method: decode a request, run the client's function, encode the reply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from sfl_flower.errors import WireError
from sfl_flower.methods import METHODS, Method
from sfl_flower.node.node import Node, TaskSource, join
from sfl_flower.node.store import CarriedLostError
from sfl_flower.run.mods import Mod, check_mods
from sfl_flower.run.run_config import task_from_context
from sfl_flower.training.device import full_precision
from sfl_flower.training.modes import torch_threads
from sfl_flower.wire.common import JoinRequest, StaleReply, UnknownTerms
from sfl_flower.wire.message import Request
from sfl_flower.wire.reader import Reader
from sfl_flower.wire.terms import keep_terms, with_terms

if TYPE_CHECKING:
    from sfl_flower.node.postprocess import Postprocess

__all__ = ["client_app", "make_client_app"]

Q = TypeVar("Q", bound=Request)


def make_client_app(
    source: TaskSource,
    methods: Iterable[Method] = (),
    *,
    postprocess: Postprocess | None = None,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return a ClientApp that trains the client half of a task by whatever method is asked for.

    Parameters
    ----------
    source : callable
        Gives the `SplitTask` from the node's `Context`; called with every message, so it should
        return a task that is built once.
    methods : iterable of Method
        Methods of your own that it answers beside those of `METHODS`.
    postprocess : callable, optional
        Makes of a method's reply the one that is sent, see `sfl_flower.node.postprocess`.
    mods : sequence of callable
        Flower's client mods, around every message; the first is the outermost.

    Raises
    ------
    ConfigError
        If a mod cannot work with the messages of this package.
    """
    app = ClientApp(mods=check_mods(mods))

    @app.query("join")
    def joined(message: Message, context: Context) -> Message:
        request = _read(JoinRequest, context, message.content)
        reply = UnknownTerms() if request is None else join(source, context, request)
        return Message(reply.to_content(), reply_to=message)

    for method in {**METHODS, **{own.name: own for own in methods}}.values():
        for action in method.handlers:
            answer = _answer(source, method, action, postprocess)
            app.train(method.message_type(action).partition(".")[2])(answer)
    return app


def _read(kind: type[Q], context: Context, content: RecordDict) -> Q | None:
    """Return the request in a message, None where it names terms that the client does not know."""
    whole = with_terms(context, content)
    if whole is None:
        return None
    reader = Reader(whole, kind.WHAT)
    request = kind.from_reader(reader)
    keep_terms(context, reader.terms)
    return request


def _answer(
    source: TaskSource, method: Method, action: str, postprocess: Postprocess | None
) -> Any:
    def answer(message: Message, context: Context) -> Message:
        # Looked up here: a process imports what answers its own message.
        handler, request = method.handler(action)
        asked = _read(request, context, message.content)
        if asked is None:
            return Message(UnknownTerms().to_content(), reply_to=message)
        if not asked.setup.key:
            raise WireError(f"A {request.WHAT} message lacks the key of its client.")
        with torch_threads(asked.setup.threads), full_precision():
            try:
                reply = handler(Node.open(source, context, asked.setup), asked)
            except CarriedLostError:  # before the handler did anything: it builds its half first
                return Message(UnknownTerms().to_content(), reply_to=message)
        if postprocess is not None and not isinstance(reply, StaleReply):  # that tells no data
            reply = postprocess(reply)
        return Message(reply.draft(asked.encodings).content(), reply_to=message)

    return answer


client_app: ClientApp = make_client_app(task_from_context)
