"""What runs on every node."""

from sensors.task import task
from sfl_flower import make_client_app

app = make_client_app(lambda context: task)
