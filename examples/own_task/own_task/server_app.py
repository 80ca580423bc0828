"""What runs once."""

from own_task.task import task
from sfl_flower import make_server_app

app = make_server_app(task)
