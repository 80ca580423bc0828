"""The server: averages what the clients have trained."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import Net, load_test_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for as many rounds as the run's settings say."""
    run = context.run_config
    strategy = FedAvg(fraction_train=run["fraction-train"], fraction_evaluate=0.0)
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
