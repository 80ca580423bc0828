"""The method as a value: who serves it and who answers for it."""

from sfl_flower import Method

METHOD = Method(
    "sign_sfl",
    # Named instead of imported, so that a node loads nothing of the server.
    "own_method.strategy:SignSFL",
    {"forward": "own_method.client:forward", "probe": "own_method.client:probe"},
)
