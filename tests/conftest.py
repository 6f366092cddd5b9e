"""Settings of the whole test run."""

import torch

# Tiny tensors gain nothing from threads, and on a busy machine two threads that wait for each other are far slower than one.
torch.set_num_threads(1)
