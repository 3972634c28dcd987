"""Whether PyTorch compiles or exports the code that runs."""

import torch

# PyTorch before 2.3 has it in another module.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling


@torch.compiler.assume_constant_result
def _is_dynamo_exporting() -> bool:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().export
    except AttributeError:  # not in TorchDynamo
        return False


# PyTorch before 2.7 does not have it.
is_exporting = getattr(torch.compiler, 'is_exporting', _is_dynamo_exporting)
