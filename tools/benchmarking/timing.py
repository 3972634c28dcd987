"""Time functions, phases of a step and the machine; count FLOPs."""

import statistics
import time
from collections import Counter
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfocalnet.ops import matrix_products

TOTAL = 'total'
MATRIX_SIZE = dict(cpu=2048, cuda=8192)
# PyTorch's products in bfloat16 take 100 times as long on processors without such instructions.
SLOW_SIZE = 512
COPIED_FLOATS = 2**26


def now(device):
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function, device):
    start = now(device)
    function()
    return now(device) - start


def counted(function):
    """FLOPs of the matrix products and convolutions of a function."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def autocast(args):
    return torch.autocast(args.device, torch.bfloat16, enabled=args.amp)


class Phases:
    """Seconds of named phases of a step. A phase does not include the phases inside it."""

    def __init__(self, device):
        self.device = device
        self.seconds = Counter()
        self.inside = 0.0

    def wrap(self, owner, method, name):
        """Add the time of a method to a phase."""
        function = getattr(owner, method)

        def timed(*args, **kwargs):
            outer, self.inside = self.inside, 0.0
            start = now(self.device)
            result = function(*args, **kwargs)
            taken = now(self.device) - start
            self.seconds[name] += taken - self.inside
            self.inside = outer + taken
            return result

        setattr(owner, method, timed)


class Machine:
    """Rates of matrix products and of copies, measured between the rows."""

    def __init__(self, args):
        self.device = args.device
        self.size = MATRIX_SIZE[args.device]
        if args.amp and args.device == 'cpu' and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self.size = SLOW_SIZE
        dtype = torch.bfloat16 if args.amp else torch.float32
        self.matrix = torch.randn(self.size, self.size, device=args.device).to(dtype)
        self.source = torch.zeros(COPIED_FLOATS, device=args.device)
        self.target = torch.zeros_like(self.source)
        self.products, self.copies = [], []
        self.measure()  # The first calls initialize libraries.
        self.products, self.copies = [], []

    def measure(self):
        """Measure both rates once more. The medians of all count."""
        a = self.matrix
        libraries = (partial(torch.mm, a, a), partial(matrix_products.linear, a, a))
        self.products.append(min(seconds(product, self.device) for product in libraries))
        self.copies.append(seconds(partial(self.target.copy_, self.source), self.device))

    @property
    def rate(self):
        """FLOP/s."""
        return 2 * self.size**3 / statistics.median(self.products)

    def __str__(self):
        # Bytes read and written.
        copied_bytes = 2 * self.source.nbytes / statistics.median(self.copies)
        dtype = str(self.matrix.dtype).removeprefix('torch.')
        return (
            f'{self.rate / 1e9:.0f} GFLOP/s in a {dtype} product of {self.size} x {self.size} '
            f'matrices, {copied_bytes / 1e9:.1f} GB/s read and written in a copy'
        )
