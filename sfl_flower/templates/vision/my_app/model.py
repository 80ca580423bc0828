"""The model: any PyTorch module whose layers have names."""

from torch import nn

from my_app.data import CHANNELS, CLASSES


class Net(nn.Module):
    """A small convolutional net for images [N, CHANNELS, height, width] in 0 … 1."""

    def __init__(self):
        super().__init__()
        # The clients' half, up to the cut in task.py: keep it small.
        self.conv1 = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AdaptiveMaxPool2d(4)
        # The server's half.
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(4 * 4 * 4, 64)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(64, len(CLASSES))

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(self.flatten(x))))
