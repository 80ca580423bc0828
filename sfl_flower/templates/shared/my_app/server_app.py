"""What runs once. Nothing to change: it trains as [tool.flwr.app.config] says."""

from sfl_flower import make_server_app

from my_app.task import task

app = make_server_app(task)
