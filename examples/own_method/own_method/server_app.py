"""What runs once."""

from own_method.method import METHOD
from sfl_flower import load_task, make_server_app

app = make_server_app(load_task("digits"), METHOD)
