"""What runs on every node. Nothing to change: it answers for any task and method."""

from sfl_flower import make_client_app

from my_app.task import task

app = make_client_app(lambda context: task)
