"""Instructions and registers of the Triton kernels, compiled for a GPU that need not be present."""

import re
import subprocess
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarking.timing import counted
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.ops import ModulationWeights, triton_kernels, triton_path

# Programs of NVIDIA that Triton contains.
BIN = Path(triton.__file__).parent / 'backends/nvidia/bin'
TYPES = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}
# Address, opcode and operands of a line of the disassembler.
INSTRUCTION = re.compile(r'/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)([^;]*);')
REGISTERS, WARPS = 65536, 64  # of a multiprocessor


class Launch(NamedTuple):
    """A call of a kernel."""

    kernel: str
    arguments: tuple
    constants: dict


class RecordedKernel:
    """Stands in for a kernel and appends its calls to a list."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.calls.append(Launch(self.name, args, kwargs))


class Cost(NamedTuple):
    """What a compiled kernel needs."""

    registers: int  # per thread
    spilled: int  # bytes of local memory per thread
    loop: Counter  # instructions, by opcode, of the loop with the most multiply-accumulates

    def per_product(self, *opcodes):
        """Instructions per multiply-accumulate, of these opcodes or of all."""
        instructions = sum(self.loop[opcode] for opcode in opcodes or self.loop)
        return instructions / self.loop['FFMA']

    def warps(self, per_program):
        """Warps that a multiprocessor runs at a time. Threads get registers in units of 8."""
        needed = -(-self.registers // 8) * 8 * 32 * per_program
        return min(REGISTERS // needed * per_program, WARPS)


def launches(channels, kernel_sizes, dtype, warps=triton_path.WARPS):
    """Return the calls of kernels in a training step of a focal modulation."""
    calls = []
    width = 2 * channels + len(kernel_sizes) + 1
    weights = ModulationWeights(
        torch.randn(width, channels, dtype=dtype, requires_grad=True),
        None,
        tuple(torch.randn(channels, 1, k, k, requires_grad=True) for k in kernel_sizes),
        torch.randn(channels, channels, 1, 1, dtype=dtype),
        None,
    )
    x = torch.randn(1, 8, 8, channels, dtype=dtype)
    with patch.object(triton_path, '_kernel', partial(RecordedKernel, calls)):
        triton_path.modulate(x, weights, warps).sum().backward()
    return calls


def compile_kernel(launch, capability):
    """Compile a kernel for a compute capability, such as 80, as a call of it does."""
    kernel = getattr(triton_kernels, launch.kernel)
    constants = dict(launch.constants)
    options = {'num_warps': constants.pop('num_warps', 4)}
    types, attributes = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, launch.arguments, strict=False)):
        if value is None:
            constants[name] = None
            continue
        address = value.data_ptr() if isinstance(value, torch.Tensor) else value
        types[name] = type_name(value)
        if isinstance(address, int) and address % 16 == 0:
            attributes[(i,)] = [['tt.divisibility', 16]]
    types |= dict.fromkeys(constants, 'constexpr')
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, constants, attributes)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)


def type_name(value):
    """Triton's name of an argument's type."""
    if isinstance(value, torch.Tensor):
        return f'*{TYPES[value.dtype]}'
    return 'i32' if isinstance(value, int) else 'fp32'


def cost(compiled):
    """Disassemble a compiled kernel and count."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as binary:
        binary.write(compiled.asm['cubin'])
        binary.flush()
        usage, sass = (cuobjdump(flag, binary.name) for flag in ('-res-usage', '-sass'))
    registers = int(re.search(r'REG:(\d+)', usage)[1])
    local = re.search(r'STACK:(\d+).*LOCAL:(\d+)', usage)
    return Cost(registers, sum(map(int, local.groups())), largest_loop(sass))


def cuobjdump(flag, binary):
    command = [BIN / 'cuobjdump', flag, binary]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def largest_loop(sass):
    """Count the opcodes between a branch back and its target, where most products are."""
    found = INSTRUCTION.findall(sass)
    index = {int(address, 16): i for i, (address, *_) in enumerate(found)}
    loops = [Counter()]
    for i, (_, opcode, operands) in enumerate(found):
        target = re.search(r'0x([0-9a-f]+)', operands) if opcode == 'BRA' else None
        start = index.get(int(target[1], 16), i) if target else i
        if start < i:
            loops.append(Counter(opcode for _, opcode, _ in found[start : i + 1]))
    return max(loops, key=lambda loop: loop['FFMA'])


class Gpu(NamedTuple):
    """Rates by the data sheet."""

    matrix: float  # bfloat16 multiply-accumulates per second on tensor cores
    products: float  # float32 multiply-accumulates per second on the ordinary units
    instructions: float  # per second and thread, of all schedulers
    bandwidth: float  # bytes per second


GPUS = {
    'A100 (SXM, 80 GB)': Gpu(156e12, 9.75e12, 19.5e12, 2.04e12),
    'H100 (SXM)': Gpu(495e12, 33.5e12, 33.5e12, 3.35e12),
    'RTX 4090': Gpu(82.6e12, 41.3e12, 41.3e12, 1.01e12),
}

# Bytes that each operation of a block reads and writes per element of its features, in training
# with bfloat16 autocast: norms, sums and residual connections in float32; three focal levels.
TRAFFIC = dict(
    norms=16, casts=12, f=6, levels=16, gated_sum=8, h=4, modulation=6, projection=4, residuals=20,
    mlp=36,
)  # fmt: skip


class Work(NamedTuple):
    """What a forward pass of a FocalNet has to do."""

    matrix: int  # multiply-accumulates of matrix products and strided convolutions
    depthwise: dict[int, int]  # multiply-accumulates of depth-wise convolutions by kernel size
    elements: int  # of one feature map in each of the blocks


def forward_work(net, shape):
    """Count the work of a backbone on the meta device for images (B, 3, H, W)."""
    depthwise, elements = Counter(), 0

    def count(module, inputs):
        nonlocal elements
        elements += inputs[0].numel()
        for layer in module.focal_layers:
            size = layer[0].kernel_size[0]
            depthwise[size] += size**2 * inputs[0].numel()

    for module in net.modules():
        if isinstance(module, FocalModulation):
            module.register_forward_pre_hook(count)
    flops = counted(partial(net, torch.zeros(shape, device='meta')))
    return Work(flops // 2 - depthwise.total(), dict(depthwise), elements)


def product_share(launch):
    """Share of the multiply-accumulates that count: rows of taps are computed in equal parts."""
    size, taps = launch.constants['K'], launch.constants.get('TAPS', 1)
    return size / (-(-size // taps) * taps)


def seconds(gpu, work, costs, passes):
    """Return the times of matrix products, memory traffic, and depth-wise convolutions.

    Args:
        gpu: Rates.
        work: Of a forward pass.
        costs: Instructions per useful multiply-accumulate, by kernel size, of each pass.
        passes: 1 for a forward pass, 3 for a training step.

    Returns:
        Seconds of the matrix products, of the traffic, of the products of the depth-wise
        convolutions on the ordinary units, and of the instructions of our kernels.
    """
    traffic = sum(TRAFFIC.values()) * work.elements
    instructions = sum(work.depthwise[size] * sum(each) for size, each in costs.items())
    products = passes * sum(work.depthwise.values())
    return (
        passes * work.matrix / gpu.matrix,
        passes * traffic / gpu.bandwidth,
        products / gpu.products,
        max(products / gpu.products, instructions / gpu.instructions),
    )
