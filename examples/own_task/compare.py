"""Train the task without any Flower command, beside its two references: python compare.py."""

from own_task.task import task

from sfl_flower import simulate
from sfl_flower.report import print_tables

if __name__ == "__main__":
    task.check()
    shared = {"clients": 5, "rounds": 60, "server_lr": 0.02, "backend": "inline"}
    print_tables(
        [
            simulate(task, "frozen", **shared).summary,
            simulate(task, "ho_sfl", client_lr=0.05, **shared).summary,
            simulate(task, "splitfed_v2", client_lr=0.02, **shared).summary,
        ]
    )
