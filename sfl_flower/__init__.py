"""Split federated learning with forward-only clients, on Flower.

Names are imported at first use, and stand in ``__init__.pyi`` for type checkers: a client app
must not load comparisons, plots or rich.  Flower's bundle of an app leaves ``.pyi`` files out.
"""

import lazy_loader

_NAMES = {
    "callbacks": ["Callback"],
    "comparison.compare": ["compare", "compare_runs"],
    "config": ["RunConfig"],
    "methods": ["METHODS", "Method"],
    "profiling.profile": ["Profile", "profile"],
    "reporting.exporting": ["export_model"],
    "reporting.loading": ["load_exported"],
    "reporting.page": ["write_report"],
    "run.app": ["make_server_app"],
    "run.client_app": ["make_client_app"],
    "run.run": ["RunResult"],
    "run.simulation": ["simulate"],
    "task": ["Samples", "SplitTask"],
    "tasks": ["TASKS", "load_task"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_NAMES)
__version__ = "0.1.0"
