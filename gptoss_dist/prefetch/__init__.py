"""Fill a staged folder: checkpoints and kernels from the hub, resumed where they broke off, every byte verified."""
