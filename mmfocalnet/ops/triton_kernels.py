"""Kernels of the Triton path: Eq. 4 and 5 of the paper, forward and backward.

A program computes a tile of PIXELS consecutive pixels of one sample by CHANNELS channels.
Features are rows, one per pixel, of C contiguous channels; P = H * W pixels, N = B * P rows.
Sums are in float32 for all types of features. Sums over several programs are returned as one
partial sum per program, which the caller adds up: atomic additions are not deterministic.
"""

# Triton infers the types of the arguments; its compile-time constants are upper case.
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_grad(x):
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) + x * density


@triton.jit
def _tile(pixels, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return this program's pixels, the first row of their sample, its channels, and the mask."""
    tiles = tl.cdiv(pixels, PIXELS)
    # 64 bits: a batch of large images may have more than 2^31 elements.
    first_row = (tl.program_id(0) // tiles).to(tl.int64) * pixels
    pixel = tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    return pixel, first_row, channel, mask


@triton.jit
def _shifted(origin, row, column, dy, dx, stride, height, width, in_channels):
    """Load the pixels (dy, dx) away from those at ``origin``; zeros beyond the border."""
    inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
    mask = inside[:, None] & in_channels[None, :]
    return tl.load(origin + (dy * width + dx) * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _convolve(
    source,
    stride,
    taps,
    height,
    width,
    channels,
    K: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Convolve this program's tile of a source whose rows are ``stride`` apart."""
    pixel, first_row, channel, _ = _tile(height * width, channels, PIXELS, CHANNELS)
    row, column, in_channels = pixel // width, pixel % width, channel < channels
    origin = source + (first_row + pixel)[:, None] * stride + channel[None, :]
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    # Only the inner loop is unrolled: K * K copies would take long to compile.
    for y in range(K):
        for x in tl.static_range(K):
            dy, dx = y - K // 2, x - K // 2
            value = _shifted(origin, row, column, dy, dx, stride, height, width, in_channels)
            tap = taps + (y * K + x) * channels + channel
            total += value * tl.load(tap, mask=in_channels, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def level_forward(
    source,  # z^{l-1} (N, C), its rows `stride` apart.
    stride,
    taps,  # (K * K, C)
    pre,  # (N, C)
    post,  # z^l (N, C), or None.
    sums,  # Of z^l over the pixels of each tile (B * tiles, C), or None.
    height,
    width,
    channels,
    K: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """pre^l = kernel_l * z^{l-1} and z^l = GELU(pre^l) (Eq. 4)."""
    pixel, first_row, channel, mask = _tile(height * width, channels, PIXELS, CHANNELS)
    value = _convolve(source, stride, taps, height, width, channels, K, PIXELS, CHANNELS)
    # Rounded before GELU, so that backward recomputes the same activation.
    value = value.to(pre.dtype.element_ty)
    at = (first_row + pixel)[:, None] * channels + channel[None, :]
    tl.store(pre + at, value, mask=mask)
    value = _gelu(value.to(tl.float32))
    if post is not None:
        tl.store(post + at, value.to(post.dtype.element_ty), mask=mask)
    if sums is not None:
        part = tl.sum(tl.where(mask, value, 0.0), axis=0)
        at = tl.program_id(0).to(tl.int64) * channels + channel
        tl.store(sums + at, part, mask=channel < channels)


@triton.jit
def combine(
    all_pre,  # pre^l of all levels (L, N, C).
    level_stride,
    gates,  # (N, L + 1), rows `gate_stride` apart.
    gate_stride,
    global_context,  # GELU(mean of z^L) (B, C), float32.
    totals,  # (N, C)
    scale,
    pixels,
    channels,
    LEVELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """scale * (sum_l gate_l z^l + gate_{L+1} global context) (Eq. 5)."""
    pixel, first_row, channel, mask = _tile(pixels, channels, PIXELS, CHANNELS)
    row = first_row + pixel
    at = row[:, None] * channels + channel[None, :]
    gate = gates + row * gate_stride
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for _ in tl.static_range(LEVELS):
        value = tl.load(all_pre + at, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(gate, mask=pixel < pixels, other=0.0).to(tl.float32)
        total += _gelu(value) * weight[:, None]
        # Advancing the pointers avoids an overflow of level * level_stride in 32 bits.
        all_pre += level_stride
        gate += 1
    weight = tl.load(gate, mask=pixel < pixels, other=0.0).to(tl.float32)
    sample_at = first_row // pixels * channels + channel
    value = tl.load(global_context + sample_at, mask=channel < channels, other=0.0)
    total = (total + value[None, :] * weight[:, None]) * scale
    tl.store(totals + at, total.to(totals.dtype.element_ty), mask=mask)


@triton.jit
def gates_backward(
    total_grad,  # (N, C)
    all_pre,  # pre^l of all levels (L, N, C).
    level_stride,
    gates,  # (N, L + 1), rows `gate_stride` apart; only the last column is read.
    gate_stride,
    global_context,  # (B, C), float32.
    gate_grads,  # One part per block of channels (blocks, N, L + 1).
    global_grads,  # One part per tile of pixels (B * tiles, C).
    scale,
    pixels,
    channels,
    rows,
    LEVELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the gates, sum_c grad z^l, and of the global context, sum_p grad gate."""
    pixel, first_row, channel, mask = _tile(pixels, channels, PIXELS, CHANNELS)
    row = first_row + pixel
    at = row[:, None] * channels + channel[None, :]
    grad = tl.load(total_grad + at, mask=mask, other=0.0).to(tl.float32) * scale
    gate_grad = gate_grads + (tl.program_id(1).to(tl.int64) * rows + row) * (LEVELS + 1)
    for _ in tl.static_range(LEVELS):
        value = tl.load(all_pre + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(gate_grad, tl.sum(grad * _gelu(value), axis=1), mask=pixel < pixels)
        all_pre += level_stride
        gate_grad += 1
    sample_at = first_row // pixels * channels + channel
    value = tl.load(global_context + sample_at, mask=channel < channels, other=0.0)
    tl.store(gate_grad, tl.sum(grad * value[None, :], axis=1), mask=pixel < pixels)

    weight = tl.load(gates + row * gate_stride + LEVELS, mask=pixel < pixels, other=0.0)
    part = tl.sum(grad * weight.to(tl.float32)[:, None], axis=0)
    tile_at = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(global_grads + tile_at, part, mask=channel < channels)


@triton.jit
def last_level_backward(
    total_grad,  # (N, C)
    gate,  # Of this level, `gate_stride` apart (N,).
    gate_stride,
    mean_grad,  # Gradient per pixel through the mean (B, C), float32.
    pre,  # (N, C)
    pre_grad,  # (N, C)
    scale,
    pixels,
    channels,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of pre^L: (grad gate_L + gradient of the mean / P) GELU'(pre^L)."""
    pixel, first_row, channel, mask = _tile(pixels, channels, PIXELS, CHANNELS)
    row = first_row + pixel
    at = row[:, None] * channels + channel[None, :]
    weight = tl.load(gate + row * gate_stride, mask=pixel < pixels, other=0.0).to(tl.float32)
    grad = tl.load(total_grad + at, mask=mask, other=0.0).to(tl.float32) * scale
    sample_at = first_row // pixels * channels + channel
    shared = tl.load(mean_grad + sample_at, mask=channel < channels, other=0.0)
    value = tl.load(pre + at, mask=mask, other=0.0).to(tl.float32)
    grad = (grad * weight[:, None] + shared[None, :]) * _gelu_grad(value)
    tl.store(pre_grad + at, grad.to(pre_grad.dtype.element_ty), mask=mask)


@triton.jit
def level_backward(
    pre_grad,  # Of pre^{l+1} (N, C).
    taps,  # Those of level l + 1 in reverse order (K * K, C).
    grad_below,  # Of pre^l (N, C).
    total_grad,  # (N, C)
    gate,  # Of level l, `gate_stride` apart (N,).
    gate_stride,
    pre,  # pre^l (N, C)
    post,  # z^l (N, C), recomputed for the gradient of the kernel above.
    scale,
    height,
    width,
    channels,
    K: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of pre^l: (flipped kernel_{l+1} * pre_grad + grad gate_l) GELU'(pre^l)."""
    pixels = height * width
    pixel, first_row, channel, mask = _tile(pixels, channels, PIXELS, CHANNELS)
    grad = _convolve(pre_grad, channels, taps, height, width, channels, K, PIXELS, CHANNELS)
    row = first_row + pixel
    at = row[:, None] * channels + channel[None, :]
    weight = tl.load(gate + row * gate_stride, mask=pixel < pixels, other=0.0).to(tl.float32)
    direct = tl.load(total_grad + at, mask=mask, other=0.0).to(tl.float32) * scale
    value = tl.load(pre + at, mask=mask, other=0.0).to(tl.float32)
    grad = (grad + direct * weight[:, None]) * _gelu_grad(value)
    tl.store(grad_below + at, grad.to(grad_below.dtype.element_ty), mask=mask)
    tl.store(post + at, _gelu(value).to(post.dtype.element_ty), mask=mask)


@triton.jit
def context_backward(
    pre_grad,  # Of pre^1 (N, C).
    taps,  # Those of level 1 in reverse order (K * K, C).
    context_grad,  # (N, C)
    height,
    width,
    channels,
    K: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of the context: flipped kernel_1 * pre_grad."""
    pixel, first_row, channel, mask = _tile(height * width, channels, PIXELS, CHANNELS)
    grad = _convolve(pre_grad, channels, taps, height, width, channels, K, PIXELS, CHANNELS)
    at = (first_row + pixel)[:, None] * channels + channel[None, :]
    tl.store(context_grad + at, grad.to(context_grad.dtype.element_ty), mask=mask)


@triton.jit
def taps_backward(
    source,  # z^{l-1} (N, C), its rows `stride` apart.
    stride,
    pre_grad,  # Of pre^l (N, C).
    tap_grads,  # One part per chunk of pixels (B * chunks, K * K, C).
    height,
    width,
    channels,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of one row of a kernel: sum_p pre_grad_p z^{l-1}_{p + offset of the tap}."""
    pixels = height * width
    chunks = tl.cdiv(pixels, CHUNK)
    chunk = tl.program_id(0)
    first_row = (chunk // chunks).to(tl.int64) * pixels
    start = chunk % chunks * CHUNK
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = channel < channels
    y = tl.program_id(2)
    tap_grad = tap_grads + (chunk.to(tl.int64) * K + y) * K * channels + channel
    for x in range(K):
        total = tl.zeros((PIXELS, CHANNELS), tl.float32)
        for first in range(start, tl.minimum(start + CHUNK, pixels), PIXELS):
            pixel = first + tl.arange(0, PIXELS)
            at = (first_row + pixel)[:, None]
            # Gradients of pixels past the last one are loaded as zero.
            mask = (pixel < pixels)[:, None] & in_channels[None, :]
            grad = tl.load(pre_grad + at * channels + channel[None, :], mask=mask, other=0.0)
            value = _shifted(
                source + at * stride + channel[None, :],
                pixel // width,
                pixel % width,
                y - K // 2,
                x - K // 2,
                stride,
                height,
                width,
                in_channels,
            )
            total += grad.to(tl.float32) * value
        tl.store(tap_grad, tl.sum(total, axis=0), mask=in_channels)
        tap_grad += channels
