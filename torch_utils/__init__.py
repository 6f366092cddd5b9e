"""PyTorch building blocks that know nothing of the model: operators, statistics, process groups."""
