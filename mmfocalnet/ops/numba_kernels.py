"""The loops of the numba path: Eq. 4 and 5 of the paper, one channel's plane at a time.

A plane (H, W) of one channel and all of its intermediate results fit into the processor's cache,
so that a complete hierarchy of focal levels is computed without traffic to main memory.

Planes are stored in scratch buffers with a margin of zeros above, below and between the rows. The
margin is half of the largest kernel; the one between two rows serves the end of the first and the
beginning of the second. All buffers have the same pitch (elements from row to row), so that each
tap of a kernel is one offset for all pixels and several rows form one long loop. Values computed
in the margins are not used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from mmfocalnet.ops.numba_support import KERNEL_SIZES, MAX_LEVELS, openmp

BUFFERS = 6  # Scratch planes per thread.
# Elements of a block of rows, which with the input rows around it stays in the L1 cache.
BLOCK = 1024
# Taps per row of a kernel's gradient; `_correlate` writes up to 5 taps beyond the last column.
ROW = max(KERNEL_SIZES) + 5

# Arguments of `forward` and `backward` in one record, because a thread starts with one pointer.
# Addresses are of float32 arrays; L levels, P = H * W pixels, T taps of all kernels together.
ARGUMENTS = np.dtype(
    [
        ('batch', 'i8'),
        ('channels', 'i8'),
        ('height', 'i8'),
        ('width', 'i8'),
        ('levels', 'i8'),
        ('margin', 'i8'),  # Zeros around a plane: half of the largest kernel size.
        ('taps', 'i8'),
        ('sizes', 'i8', (MAX_LEVELS,)),
        ('projected', 'i8'),  # Context and gates (B, C + L + 1, P).
        ('kernels', 'i8'),  # (C, T)
        ('contexts', 'i8', (MAX_LEVELS,)),  # Before GELU (B, C, P) each; 0: not kept.
        ('means', 'i8'),  # Means of the last level (B, C).
        ('totals', 'i8'),  # (B, C, P)
        ('projected_grad', 'i8'),  # Written for the context only (B, C + L + 1, P).
        ('gate_grads', 'i8'),  # (threads, B, L + 1, P), zeros at the start.
        ('kernel_grads', 'i8'),  # (C, T); 0: not computed.
        ('scratch', 'i8'),  # (threads, BUFFERS, buffer), zeros at the start.
        ('buffer', 'i8'),  # Elements of a scratch plane.
    ]
)
_arguments = numba.from_dtype(ARGUMENTS)

_f32 = np.float32
_ZERO, _HALF, _ONE = _f32(0), _f32(0.5), _f32(1)
_HALF_LOG2_E = _f32(0.5 * np.log2(np.e))
_NORMAL = _f32(1 / np.sqrt(2 * np.pi))
_SMALLEST_EXPONENT = _f32(-126)
# Taylor series of 2^r on [-0.5, 0.5]; error below 2e-8.
_EXP = tuple(_f32(np.log(2) ** n / np.prod(np.arange(1.0, n + 1))) for n in range(1, 7))
# The tail of the normal distribution is exp(-x^2/2) times this polynomial in 1 / (1 + 0.28 x):
# minimax fit of degree 6; error of GELU below 1.2e-8.
_TAIL_SCALE = _f32(0.28)
_TAIL = tuple(
    _f32(c)
    for c in (
        0.11672886607657047,
        0.06623121979109947,
        0.27196793072574826,
        -0.24066382024027178,
        0.3920634477488997,
        -0.1063276551130851,
    )
)
_E1, _E2, _E3, _E4, _E5, _E6 = _EXP
_T1, _T2, _T3, _T4, _T5, _T6 = _TAIL

# Reordering of sums is allowed, as vectorisation needs it; NaN and Inf are preserved.
_SUM = {'contract', 'reassoc', 'nsz'}
_MULTIPLY_ADD = {'contract'}


def _openmp_function(name: str) -> types.ExternalFunction:
    # Under a separate name: another library may load a second OpenMP, which does not know the
    # threads of this one.
    address = ctypes.cast(getattr(openmp(), name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f'mmfocalnet_{name}', address)
    return types.ExternalFunction(f'mmfocalnet_{name}', types.int32())


_thread = _openmp_function('omp_get_thread_num')
_threads = _openmp_function('omp_get_num_threads')


@intrinsic
def _pointer(_: Any, address: types.Integer) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), codegen


@intrinsic
def _float_of_bits(_: Any, bits: types.Integer) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.float32(bits), codegen


@njit(inline='always')
def _plane(address, index, size):
    """Plane ``index`` of an array of planes of ``size`` elements each."""
    return carray(_pointer(address + 4 * index * size), (size,))


@njit(inline='always')
def _bell(x):
    """exp(-x^2 / 2)."""
    exponent = max(-_HALF_LOG2_E * x * x, _SMALLEST_EXPONENT)
    integer_part = np.int32(exponent - _HALF)
    r = exponent - _f32(integer_part)
    power = _ONE + r * (_E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    return power * _float_of_bits(np.int32((integer_part + np.int32(127)) << np.int32(23)))


@njit(inline='always')
def _normal_cdf(x, bell):
    """Cumulative distribution function of the normal distribution."""
    t = _ONE / (_ONE + _TAIL_SCALE * abs(x))
    tail = bell * t * (_T1 + t * (_T2 + t * (_T3 + t * (_T4 + t * (_T5 + t * _T6)))))
    return tail if x < _ZERO else _ONE - tail


@njit(fastmath=_MULTIPLY_ADD, error_model='numpy')
def _gelu(x, value):
    for i in range(x.size):
        value[i] = x[i] * _normal_cdf(x[i], _bell(x[i]))


@njit(fastmath=_MULTIPLY_ADD)
def _add_product(total, a, b):
    for i in range(total.size):
        total[i] += a[i] * b[i]


@njit(fastmath=_MULTIPLY_ADD)
def _add_scaled(total, scale, a):
    for i in range(total.size):
        total[i] += scale * a[i]


@njit(fastmath=_SUM)
def _sum(a):
    total = _ZERO
    for i in range(a.size):
        total += a[i]
    return total


@njit(fastmath=_SUM)
def _dot(a, b):
    total = _ZERO
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(inline='always')
def _convolve_with(taps, padded, pitch, kernel, out):
    out[:] = _ZERO
    for y in range(taps):
        row = padded[y * pitch : y * pitch + out.size + taps - 1]
        for i in range(out.size):
            total = out[i]
            for x in range(taps):
                total += kernel[y * taps + x] * row[i + x]
            out[i] = total


@njit(fastmath=_SUM)
def _convolve(size, padded, pitch, kernel, out):
    """Convolve a run of pixels: out[i] = sum over y, x of kernel[y, x] padded[i + y pitch + x].

    Constant sizes let the compiler unroll a kernel's row and vectorise over pixels.
    """
    if size == 3:
        _convolve_with(3, padded, pitch, kernel, out)
    elif size == 5:
        _convolve_with(5, padded, pitch, kernel, out)
    elif size == 7:
        _convolve_with(7, padded, pitch, kernel, out)
    elif size == 9:
        _convolve_with(9, padded, pitch, kernel, out)
    elif size == 11:
        _convolve_with(11, padded, pitch, kernel, out)
    elif size == 13:
        _convolve_with(13, padded, pitch, kernel, out)
    elif size == 15:
        _convolve_with(15, padded, pitch, kernel, out)
    elif size == 17:
        _convolve_with(17, padded, pitch, kernel, out)
    elif size == 19:
        _convolve_with(19, padded, pitch, kernel, out)


@njit(fastmath=_SUM)
def _correlate_5(row, grad, out):
    a = b = c = d = e = _ZERO
    for i in range(grad.size):
        g = grad[i]
        a += g * row[i]
        b += g * row[i + 1]
        c += g * row[i + 2]
        d += g * row[i + 3]
        e += g * row[i + 4]
    out[0] += a
    out[1] += b
    out[2] += c
    out[3] += d
    out[4] += e


@njit(fastmath=_SUM)
def _correlate_3(row, grad, out):
    a = b = c = _ZERO
    for i in range(grad.size):
        g = grad[i]
        a += g * row[i]
        b += g * row[i + 1]
        c += g * row[i + 2]
    out[0] += a
    out[1] += b
    out[2] += c


@njit
def _correlate(size, padded, pitch, grad, out):
    """Add a run of pixels to the gradient of a kernel; ``out`` has ROW elements per row.

    Several taps share one load of the gradient. Values beyond the kernel's last column are
    ignored by the caller.
    """
    for y in range(size):
        x = 0
        while x < size:
            row = padded[y * pitch + x :]
            if size - x > 3:
                _correlate_5(row, grad, out[y * ROW + x :])
                x += 5
            else:
                _correlate_3(row, grad, out[y * ROW + x :])
                x += 3


@njit
def _my_share(count):
    """First and last (exclusive) of the ``count`` work items of this thread."""
    thread, threads = _thread(), _threads()
    return thread * count // threads, (thread + 1) * count // threads


def _compiled(function: Callable) -> Any:
    signature = types.void(types.CPointer(_arguments))
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError:  # Neither this folder nor the user's cache is writable.
        return cfunc(signature)(function)


@njit(fastmath=_MULTIPLY_ADD, error_model='numpy')
def _backward_of_activation(context, gate, total_grad, gate_grad, total, value, slope):
    for i in range(context.size):
        bell = _bell(context[i])
        cdf = _normal_cdf(context[i], bell)
        activated = context[i] * cdf
        value[i] = activated
        slope[i] = cdf + context[i] * bell * _NORMAL
        gate_grad[i] += total_grad[i] * activated
        total[i] += gate[i] * activated


@njit(fastmath=_MULTIPLY_ADD)
def _context_gradient(from_above, total_grad, gate, slope, out):
    for i in range(out.size):
        out[i] = (from_above[i] + total_grad[i] * gate[i]) * slope[i]


@_compiled
def forward(arguments):
    """Sum the gated contexts of all levels (Eq. 4 and 5); `ARGUMENTS` lists the arguments."""
    args = carray(arguments, (1,))[0]
    height, width, margin, channels = args.height, args.width, args.margin, args.channels
    pixels, pitch = height * width, width + margin
    inside = margin * (pitch + 1)
    rows = max(1, BLOCK // pitch)
    source = _plane(args.scratch, BUFFERS * _thread(), args.buffer)
    target = _plane(args.scratch, BUFFERS * _thread() + 1, args.buffer)
    block = _plane(args.scratch, BUFFERS * _thread() + 2, args.buffer)
    activated = _plane(args.scratch, BUFFERS * _thread() + 3, args.buffer)

    first, last = _my_share(args.batch * channels)
    for plane in range(first, last):
        channel = plane % channels
        of_sample = plane // channels * (channels + args.levels + 1)
        gates = of_sample + channels
        total = _plane(args.totals, plane, pixels)
        total[:] = _ZERO
        context = _plane(args.projected, of_sample + channel, pixels)
        for y in range(height):
            row = inside + y * pitch
            source[row : row + width] = context[y * width : (y + 1) * width]
        kernel = _plane(args.kernels, channel, args.taps)
        sum_of_last = _ZERO
        for level in range(args.levels):
            size = args.sizes[level]
            reach = (margin - size // 2) * (pitch + 1)
            gate = _plane(args.projected, gates + level, pixels)
            keep = args.contexts[level] != 0
            kept = _plane(args.contexts[level], plane, pixels)
            sum_of_last = _ZERO
            for start in range(0, height, rows):
                stop = min(height, start + rows)
                run = block[: (stop - start - 1) * pitch + width]
                _convolve(size, source[start * pitch + reach :], pitch, kernel, run)
                if keep:
                    for y in range(start, stop):
                        row = (y - start) * pitch
                        kept[y * width : (y + 1) * width] = run[row : row + width]
                _gelu(run, activated)
                for y in range(start, stop):
                    row = (y - start) * pitch
                    value = activated[row : row + width]
                    target[inside + y * pitch : inside + y * pitch + width] = value
                    here = slice(y * width, (y + 1) * width)
                    _add_product(total[here], value, gate[here])
                    sum_of_last += _sum(value)
            kernel = kernel[size * size :]
            source, target = target, source
        mean = sum_of_last / _f32(pixels)
        _plane(args.means, plane, 1)[0] = mean
        gate = _plane(args.projected, gates + args.levels, pixels)
        _add_scaled(total, mean * _normal_cdf(mean, _bell(mean)), gate)


@_compiled
def backward(arguments):
    """Compute all gradients of `forward`; `ARGUMENTS` lists the arguments.

    ``totals`` holds the gradient of the sum at the start and the recomputed sum at the end, so
    that forward need not keep it. Each thread sums the gradients of the gates over its channels.
    """
    args = carray(arguments, (1,))[0]
    height, width, margin, channels = args.height, args.width, args.margin, args.channels
    pixels, pitch = height * width, width + margin
    inside = margin * (pitch + 1)
    run = (height - 1) * pitch + width
    step = max(1, BLOCK // pitch) * pitch
    source = _plane(args.scratch, BUFFERS * _thread(), args.buffer)
    grads = _plane(args.scratch, BUFFERS * _thread() + 1, args.buffer)
    from_above = _plane(args.scratch, BUFFERS * _thread() + 2, args.buffer)
    slope = _plane(args.scratch, BUFFERS * _thread() + 3, args.buffer)[:pixels]
    total = _plane(args.scratch, BUFFERS * _thread() + 4, args.buffer)[:pixels]
    value = _plane(args.scratch, BUFFERS * _thread() + 5, args.buffer)[:pixels]
    flipped = np.empty(ROW * ROW, _f32)
    kernel_grad = np.empty(ROW * ROW, _f32)

    first, last = _my_share(channels)
    for channel in range(first, last):
        kernels = _plane(args.kernels, channel, args.taps)
        kernel_grads = _plane(args.kernel_grads, channel, args.taps)
        with_kernels = args.kernel_grads != 0
        if with_kernels:
            kernel_grads[:] = _ZERO
        for sample in range(args.batch):
            of_sample = sample * (channels + args.levels + 1)
            gates = of_sample + channels
            gate_grads = (_thread() * args.batch + sample) * (args.levels + 1)
            plane = sample * channels + channel
            total_grad = _plane(args.totals, plane, pixels)

            # Global context.
            mean = _plane(args.means, plane, 1)[0]
            bell = _bell(mean)
            cdf = _normal_cdf(mean, bell)
            gate = _plane(args.projected, gates + args.levels, pixels)
            gate_grad = _plane(args.gate_grads, gate_grads + args.levels, pixels)
            _add_scaled(gate_grad, mean * cdf, total_grad)
            total[:] = _ZERO
            _add_scaled(total, mean * cdf, gate)
            slope_of_mean = cdf + mean * bell * _NORMAL
            from_above[:run] = _dot(total_grad, gate) * slope_of_mean / _f32(pixels)

            first_tap = args.taps
            # One iteration more than levels: the slopes of a level are computed with the input
            # of the next level.
            for level in range(args.levels, -1, -1):
                if level < args.levels:
                    gate = _plane(args.projected, gates + level, pixels)
                    for y in range(height):
                        here = slice(y * width, (y + 1) * width)
                        row = y * pitch
                        _context_gradient(
                            from_above[row : row + width],
                            total_grad[here],
                            gate[here],
                            slope[here],
                            grads[inside + row : inside + row + width],
                        )
                if level == 0:
                    value[:] = _plane(args.projected, of_sample + channel, pixels)
                else:
                    _backward_of_activation(
                        _plane(args.contexts[level - 1], plane, pixels),
                        _plane(args.projected, gates + level - 1, pixels),
                        total_grad,
                        _plane(args.gate_grads, gate_grads + level - 1, pixels),
                        total,
                        value,
                        slope,
                    )
                for y in range(height):
                    row = inside + y * pitch
                    source[row : row + width] = value[y * width : (y + 1) * width]
                if level == args.levels:
                    continue
                size = args.sizes[level]
                reach = (margin - size // 2) * (pitch + 1)
                first_tap -= size * size
                for tap in range(size * size):
                    flipped[tap] = kernels[first_tap + size * size - 1 - tap]
                kernel_grad[:] = _ZERO
                for start in range(0, run, step):
                    stop = min(run, start + step)
                    if with_kernels:
                        _correlate(
                            size,
                            source[start + reach :],
                            pitch,
                            grads[inside + start : inside + stop],
                            kernel_grad,
                        )
                    _convolve(size, grads[start + reach :], pitch, flipped, from_above[start:stop])
                for y in range(size if with_kernels else 0):
                    for x in range(size):
                        kernel_grads[first_tap + y * size + x] += kernel_grad[y * ROW + x]
            context_grad = _plane(args.projected_grad, of_sample + channel, pixels)
            for y in range(height):
                context_grad[y * width : (y + 1) * width] = from_above[
                    y * pitch : y * pitch + width
                ]
            total_grad[:] = total
