"""Whether PyTorch compiles the code that runs."""

import torch

# PyTorch before 2.3 has it in another module.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling
