"""What runs once."""

from sensors.task import task
from sfl_flower import make_server_app

app = make_server_app(task)
