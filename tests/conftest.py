"""One thread: the tests' tensors are small, and on a busy machine threads wait for each other longer than they work."""

import torch

torch.set_num_threads(1)
