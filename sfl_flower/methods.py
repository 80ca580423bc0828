"""The methods: each a value that says who serves it, who answers for it, and what it is.

What the values name is imported at first use: a client loads what answers the messages it gets and
nothing of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

from sfl_flower.config import ENCODED, RunConfig, Settings
from sfl_flower.errors import ConfigError
from sfl_flower.options import read_fields, unknown
from sfl_flower.wire.encodings import encoding_of

if TYPE_CHECKING:
    from sfl_flower.server.cost import ClientCost, Parts
    from sfl_flower.server.facts import Facts
    from sfl_flower.server.strategy import SplitStrategy

__all__ = ["METHODS", "Method", "find_method", "read_options"]

Handler = Callable[[Any, Any], Any]
"""A client's function: from its `Node` and a request to a reply."""


@dataclass(frozen=True, eq=False)
class Method:
    """A way to train a split model: its server half, its client half, and what it is.

    Parameters
    ----------
    name : str
        Its name in options, tables and message types; a Python identifier.
    strategy : type or str
        The server half, a subclass of `sfl_flower.server.strategy.SplitStrategy`, or where to find
        it: ``"package.module:name"``.
    handlers : Mapping[str, callable or str]
        The client half: for each action of its requests (`Request.ACTION`), the function
        ``handler(node, request)`` that answers, or where to find it. The annotation of `request`
        says what is read from the message.

    Examples
    --------
    >>> from sfl_flower import METHODS
    >>> METHODS["ho_sfl"].facts.client
    'zeroth order'
    """

    name: str
    strategy: type[SplitStrategy] | str
    handlers: Mapping[str, Handler | str]

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), *(("action", key) for key in self.handlers)):
            if not text.isidentifier():
                raise ConfigError(
                    f"The {what} of method '{self.name}' is '{text}'; it must be letters, digits "
                    "and underscores, because it is part of Flower's message type."
                )

    @cached_property
    def server(self) -> type[SplitStrategy]:
        """The strategy's class."""
        found: type[SplitStrategy] = _load(self.strategy)
        if found.name != self.name:
            raise ConfigError(
                f"Method '{self.name}' has a strategy with the name '{found.name}'; give both the "
                "same."
            )
        return found

    @property
    def settings(self) -> type[Settings]:
        """The class of its own settings."""
        return self.server.settings_type

    @property
    def facts(self) -> Facts:
        """What it is."""
        return self.server.facts

    def cost(self, parts: Parts) -> ClientCost | None:
        """Return what a mini-batch costs a client, None where no closed form is given."""
        return self.server.cost(parts)

    def handler(self, action: str) -> tuple[Handler, type[Any]]:
        """Return the function that answers an action, and the request that it takes.

        Raises
        ------
        ConfigError
            If the function does not say what it takes.
        """
        found: Handler = _load(self.handlers[action])
        hints = {key: kind for key, kind in get_type_hints(found).items() if key != "return"}
        names = list(hints)
        if len(names) < 2 or not hasattr(hints[names[1]], "from_content"):
            raise ConfigError(
                f"The handler of '{action}' of method '{self.name}' does not annotate its second "
                "parameter with a request; write handler(node: Node, request: MyRequest)."
            )
        return found, hints[names[1]]

    def message_type(self, action: str) -> str:
        """Return Flower's type of the messages of an action."""
        return f"train.{self.name}_{action}"


def _load(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    module, colon, name = target.partition(":")
    try:
        if not (module and colon and name):
            raise ImportError("it is not of the form module:name")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'{target}' cannot be imported: {error}.") from error


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "ho_sfl",
            "sfl_flower.strategies.ho_sfl:HOSFL",
            {
                "forward": "sfl_flower.clients.ho_sfl:forward",
                "probe": "sfl_flower.clients.ho_sfl:probe",
                "pipelined": "sfl_flower.clients.ho_sfl:pipelined",
                "secure_forward": "sfl_flower.clients.ho_sfl:secure_forward",
                "secure_probe": "sfl_flower.clients.ho_sfl:secure_probe",
                "unmask": "sfl_flower.clients.ho_sfl:unmask",
            },
        ),
        Method(
            "heron",
            "sfl_flower.strategies.heron:HERON",
            {"local": "sfl_flower.clients.heron:local"},
        ),
        Method(
            "splitfed_v1",
            "sfl_flower.strategies.splitfed:SplitFedV1",
            {"step": "sfl_flower.clients.splitfed:step"},
        ),
        Method(
            "splitfed_v2",
            "sfl_flower.strategies.splitfed:SplitFedV2",
            {"step": "sfl_flower.clients.splitfed:step"},
        ),
        Method(
            "cse_fsl",
            "sfl_flower.strategies.cse_fsl:CSEFSL",
            {"local": "sfl_flower.clients.cse_fsl:local"},
        ),
        Method(
            "fsl_sage",
            "sfl_flower.strategies.fsl_sage:FSLSAGE",
            {
                "upload": "sfl_flower.clients.fsl_sage:upload",
                "local": "sfl_flower.clients.fsl_sage:local",
                "warm_up": "sfl_flower.clients.fsl_sage:warm_up",
            },
        ),
        Method(
            "fedavg",
            "sfl_flower.strategies.fedavg:FedAvg",
            {"train": "sfl_flower.clients.fedavg:train"},
        ),
        Method(
            "mu_splitfed",
            "sfl_flower.strategies.mu_splitfed:MUSplitFed",
            {
                "forward": "sfl_flower.clients.mu_splitfed:forward",
                "step": "sfl_flower.clients.mu_splitfed:step",
            },
        ),
        Method(
            "zo_sfl",
            "sfl_flower.strategies.zo_sfl:ZOSFL",
            {"step": "sfl_flower.clients.zo_sfl:step"},
        ),
        Method(
            "decomfl",
            "sfl_flower.strategies.decomfl:DeComFL",
            {"walk": "sfl_flower.clients.decomfl:walk"},
        ),
        Method(
            "u_shaped",
            "sfl_flower.strategies.u_shaped:UShaped",
            {
                "forward": "sfl_flower.clients.u_shaped:forward",
                "tail": "sfl_flower.clients.u_shaped:tail",
                "probe": "sfl_flower.clients.u_shaped:probe",
            },
        ),
        Method(
            "frozen",
            "sfl_flower.strategies.frozen:Frozen",
            {"forward": "sfl_flower.clients.frozen:forward"},
        ),
    )
}
"""The project's own methods, by name."""


def find_method(named: str | Method) -> Method:
    """Return a method.

    Parameters
    ----------
    named : str or Method
        A key of `METHODS`, ``"package.module:name"`` of a `Method`, or the method itself.

    Raises
    ------
    ConfigError
        If there is none of this name, or it is something else.
    """
    if isinstance(named, Method):
        return named
    if named in METHODS:
        return METHODS[named]
    if ":" not in named:
        raise unknown("method", named, METHODS)
    found = _load(named)
    if not isinstance(found, Method):
        raise ConfigError(
            f"method '{named}' is a {type(found).__name__}; it must be a sfl_flower.Method."
        )
    return found


def read_options(
    options: Mapping[str, Any],
) -> tuple[RunConfig, Method, Settings, dict[str, Any]]:
    """Sort flat options into settings of the run, of its method and of its task.

    Parameters
    ----------
    options : Mapping[str, Any]
        Keys as on the command line; those of the task begin with ``task.``. The method is what
        `find_method` takes.

    Returns
    -------
    config : RunConfig
        Settings that every method shares.
    method : Method
        The method.
    settings : Settings
        Settings of the method.
    task_options : dict[str, Any]
        Options of the task.

    Raises
    ------
    ConfigError
        If a key or a value is not legal, or values do not go together.
    """
    shared: dict[str, Any] = {}
    own: dict[str, Any] = {}
    task: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name.startswith("task."):
            task[name.removeprefix("task.")] = value
        else:
            (shared if name in RunConfig.keys() else own)[name] = value
    named = shared.get("method", RunConfig.method)
    if not isinstance(named, str | Method):
        raise ConfigError(f"method is {named!r}; it must be a text, one of {', '.join(METHODS)}.")
    method = find_method(named)
    shared["method"] = method.name
    kind = method.settings
    known = RunConfig.keys() | set(kind.__dataclass_fields__)
    for name in own:
        if name not in known:
            raise unknown(f"option of method '{method.name}'", name.replace("_", "-"), known)
    config = RunConfig.read(shared)
    settings = read_fields(kind, own, f"method '{method.name}'")
    for name in ENCODED:
        encoding_of(getattr(config, name), name)
    method.server.check_options(config, settings)
    return config, method, settings, task
