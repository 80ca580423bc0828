"""A client: trains the whole model on its own images."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_data, train

app = ClientApp()


@app.train()
def on_train(message: Message, context: Context) -> Message:
    """Train the model that the server has sent, and send it back."""
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    run = context.run_config
    loader = load_data(context.node_config, run["batch-size"])
    loss = train(net, loader, run["local-epochs"], run["learning-rate"])
    metrics = {"train_loss": loss, "num-examples": len(loader.dataset)}
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)
