"""The server: averages what the clients have trained."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from sfl_flower import RunConfig
from sfl_flower.strategies.ho_sfl import HOSFL, HOSFLSettings

from quickstart.task import Net, load_test_data, task, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for as many rounds as the run's settings say."""
    run = context.run_config
    rate = run["learning-rate"]
    config = RunConfig(clients=run["clients"], partition="local", server_lr=rate, eval_every=1)
    settings = HOSFLSettings(client_lr=0.02, probes=8, minibatches=8, server_steps="batch")
    strategy = HOSFL(task, config, settings)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=run["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    last = result.evaluate_metrics_serverapp[run["num-server-rounds"]]
    print(f"Accuracy: {last['accuracy']:.4f}")


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the model of a round on images that nobody trains on."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": test(net, load_test_data(64))})
