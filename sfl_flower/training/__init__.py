"""What both ends train with: optimisers, rates, losses and metrics, modes, meters."""
