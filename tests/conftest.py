"""Settings of the whole test run."""

import torch

from torch_utils.ops import library

# Tiny tensors gain nothing from threads, and on a busy machine two threads that wait for each other are far slower than one.
torch.set_num_threads(1)

# Once for all tests and the commands that they start, before any of them looks for its caches elsewhere.
library.load()
