"""Settings of the whole test run."""

import hypothesis
import torch

from torch_utils.ops import library

# Tiny tensors gain nothing from threads, and on a busy machine two threads that wait for each other
# are far slower than one.
torch.set_num_threads(1)

# A machine that is busy with something else is no reason for a test to fail.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Once for all tests and the commands that they start, before any of them looks for its caches
# elsewhere.
library.load()
