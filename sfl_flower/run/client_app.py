"""The ClientApp of every method: decode a request, run the client's function, encode the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sfl_flower.methods import HANDLERS, Handler
from sfl_flower.node.node import Node, TaskSource, join
from sfl_flower.training.modes import torch_threads
from sfl_flower.wire import JoinRequest, StaleReply

if TYPE_CHECKING:
    from sfl_flower.node.postprocess import Postprocess

__all__ = ["make_client_app"]


def make_client_app(source: TaskSource, postprocess: Postprocess | None = None) -> ClientApp:
    """Return a ClientApp that trains the client half of a task by whatever method is asked for.

    Parameters
    ----------
    source : callable
        Gives the `SplitTask` from the node's `Context`; called with every message, so it should
        return a task that is built once.
    postprocess : callable, optional
        Makes of a method's reply the one that is sent, see `sfl_flower.node.postprocess`.
    """
    app = ClientApp()

    @app.query("join")
    def joined(message: Message, context: Context) -> Message:
        reply = join(source, context, JoinRequest.from_content(message.content))
        return Message(reply.to_content(), reply_to=message)

    for request, handler in HANDLERS.items():
        action = request.TYPE.partition(".")[2]
        app.train(action)(_answer(source, request, handler, postprocess))
    return app


def _answer(
    source: TaskSource, request: type[Any], handler: Handler, postprocess: Postprocess | None
) -> Any:
    def answer(message: Message, context: Context) -> Message:
        asked = request.from_content(message.content)
        with torch_threads(asked.setup.threads):
            reply = handler(Node.open(source, context, asked.setup), asked)
        if postprocess is not None and not isinstance(reply, StaleReply):  # that tells no data
            reply = postprocess(reply)
        return Message(reply.to_content(), reply_to=message)

    return answer
