"""What runs on every node."""

from own_method.method import METHOD
from sfl_flower import load_task, make_client_app

task = load_task("digits")
app = make_client_app(lambda context: task, [METHOD])
