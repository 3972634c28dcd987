"""Kernels of the Triton path: Eq. 4 and 5 of the paper, forward and backward.

Features are rows, one per pixel, of C contiguous channels; P = H * W pixels, N = B * P rows.
A program computes CHANNELS channels of PIXELS consecutive pixels of one sample. A program that
convolves computes GROUPS groups of four neighbours instead: pixels (y, 4 i) to (y, 4 i + 3). It
loads and converts each value once for all four, which is most of the instructions otherwise.

Sums are in float32 for all types of features. Sums over several programs are returned as one
partial sum per program, which the caller adds up: atomic additions are not deterministic.

Vector loads require that rows start at multiples of 16 bytes. Triton recognizes numbers that are
divisible by 16; ALIGN is the largest power of two up to 16 that divides C and the stride.
"""

# Triton infers the types of the arguments; its compile-time constants are upper case.
# ruff: noqa: N803

import triton
import triton.language as tl

# Images of any size run the same compiled kernel.
IMAGE_SIZE = ('height', 'width')


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
def _load(rows, inside, in_channels):
    """Load rows (GROUPS, CHANNELS) as float32, with zeros where they are not inside."""
    mask = inside[:, None] & in_channels[None, :]
    return tl.load(rows, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _groups(height, width, channels, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the first row of this program's sample, the position of its groups, its channels."""
    per_row = tl.cdiv(width, 4)
    tiles = tl.cdiv(height * per_row, GROUPS)
    first_row = (tl.program_id(0) // tiles).to(tl.int64) * (height * width)
    group = tl.program_id(0) % tiles * GROUPS + tl.arange(0, GROUPS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return first_row, group // per_row, group % per_row * 4, channel


@triton.jit
def _pixel(i: tl.constexpr, height, width, channels, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the rows of pixel i of this program's groups, whether they exist, and the mask."""
    first_row, y, x, channel = _groups(height, width, channels, GROUPS, CHANNELS)
    exists = (y < height) & (x + i < width)
    return first_row + y * width + x + i, exists, exists[:, None] & (channel < channels)[None, :]


@triton.jit
def _pick(value0, value1, value2, value3, i: tl.constexpr):
    """Return the value of pixel i: Triton 3.2 cannot index tuples."""
    value = value0
    if i == 1:
        value = value1
    if i == 2:
        value = value2
    if i == 3:
        value = value3
    return value


@triton.jit
def _add_tap(total, value, tap, x: tl.constexpr, stride, K: tl.constexpr):
    if x >= 0 and x < K:
        # Triton 3.10 no longer joins products and sums.
        total = tl.math.fma(
            value, tl.broadcast_to(tl.load(tap + x * stride)[None, :], value.shape), total
        )
    return total


@triton.jit
def _convolve(
    source,
    stride,
    taps,
    height,
    width,
    channels,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Convolve a source whose rows are ``stride`` apart: one tile per pixel of the groups."""
    first_row, y, x, channel = _groups(height, width, channels, GROUPS, CHANNELS)
    in_channels = channel < channels
    corner = first_row + (y - K // 2) * width + x - K // 2
    rows = source + corner[:, None] * stride + channel[None, :]
    tap_stride = tl.cdiv(channels, CHANNELS) * CHANNELS
    tap = taps + channel
    total0 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total1 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total2 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total3 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    # Only the inner loop is unrolled: K * K copies would take long to compile.
    for dy in range(-(K // 2), K // 2 + 1):
        in_row = (y + dy >= 0) & (y + dy < height)
        row = rows
        for i in tl.static_range(K + 3):
            column = x + (i - K // 2)
            value = _load(row, in_row & (column >= 0) & (column < width), in_channels)
            total0 = _add_tap(total0, value, tap, i, tap_stride, K)
            total1 = _add_tap(total1, value, tap, i - 1, tap_stride, K)
            total2 = _add_tap(total2, value, tap, i - 2, tap_stride, K)
            total3 = _add_tap(total3, value, tap, i - 3, tap_stride, K)
            row += stride
        rows += width * stride
        tap += K * tap_stride
    return total0, total1, total2, total3


@triton.jit(do_not_specialize=IMAGE_SIZE)
def level_forward(
    source,  # z^{l-1} (N, C), its rows `stride` apart.
    stride,
    taps,  # (K * K, C rounded up to a multiple of CHANNELS), float32.
    pre,  # (N, C)
    post,  # z^l (N, C), or None.
    sums,  # Of z^l over the pixels of each tile (B * tiles, C), or None.
    height,
    width,
    channels,
    K: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """pre^l = kernel_l * z^{l-1} and z^l = GELU(pre^l) (Eq. 4)."""
    channels, stride = channels // ALIGN * ALIGN, stride // ALIGN * ALIGN
    value0, value1, value2, value3 = _convolve(
        source, stride, taps, height, width, channels, K, GROUPS, CHANNELS
    )
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((GROUPS, CHANNELS), tl.float32)
    for i in tl.static_range(4):
        row, _, mask = _pixel(i, height, width, channels, GROUPS, CHANNELS)
        at = row[:, None] * channels + channel[None, :]
        # Rounded before GELU, so that backward recomputes the same activation.
        value = _pick(value0, value1, value2, value3, i).to(pre.dtype.element_ty)
        tl.store(pre + at, value, mask=mask)
        value = _gelu(value.to(tl.float32))
        if post is not None:
            tl.store(post + at, value.to(post.dtype.element_ty), mask=mask)
        total += tl.where(mask, value, 0.0)
    if sums is not None:
        at = tl.program_id(0).to(tl.int64) * channels + channel
        tl.store(sums + at, tl.sum(total, axis=0), mask=channel < channels)


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
    ALIGN: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """scale * (sum_l gate_l z^l + gate_{L+1} global context) (Eq. 5)."""
    channels = channels // ALIGN * ALIGN
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
    ALIGN: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the gates, sum_c grad z^l, and of the global context, sum_p grad gate."""
    channels = channels // ALIGN * ALIGN
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
    ALIGN: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of pre^L: (grad gate_L + gradient of the mean / P) GELU'(pre^L)."""
    channels = channels // ALIGN * ALIGN
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


@triton.jit(do_not_specialize=IMAGE_SIZE)
def level_backward(
    pre_grad,  # Of pre^{l+1} (N, C).
    taps,  # Those of level l + 1 in reverse order, as in `level_forward`.
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
    ALIGN: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of pre^l: (flipped kernel_{l+1} * pre_grad + grad gate_l) GELU'(pre^l)."""
    channels = channels // ALIGN * ALIGN
    grad0, grad1, grad2, grad3 = _convolve(
        pre_grad, channels, taps, height, width, channels, K, GROUPS, CHANNELS
    )
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    for i in tl.static_range(4):
        row, exists, mask = _pixel(i, height, width, channels, GROUPS, CHANNELS)
        at = row[:, None] * channels + channel[None, :]
        weight = tl.load(gate + row * gate_stride, mask=exists, other=0.0).to(tl.float32)
        direct = tl.load(total_grad + at, mask=mask, other=0.0).to(tl.float32) * scale
        value = tl.load(pre + at, mask=mask, other=0.0).to(tl.float32)
        grad = _pick(grad0, grad1, grad2, grad3, i) + direct * weight[:, None]
        grad = grad * _gelu_grad(value)
        tl.store(grad_below + at, grad.to(grad_below.dtype.element_ty), mask=mask)
        tl.store(post + at, _gelu(value).to(post.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=IMAGE_SIZE)
def context_backward(
    pre_grad,  # Of pre^1 (N, C).
    taps,  # Those of level 1 in reverse order, as in `level_forward`.
    context_grad,  # (N, C)
    height,
    width,
    channels,
    K: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of the context: flipped kernel_1 * pre_grad."""
    channels = channels // ALIGN * ALIGN
    grad0, grad1, grad2, grad3 = _convolve(
        pre_grad, channels, taps, height, width, channels, K, GROUPS, CHANNELS
    )
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    for i in tl.static_range(4):
        row, _, mask = _pixel(i, height, width, channels, GROUPS, CHANNELS)
        at = row[:, None] * channels + channel[None, :]
        grad = _pick(grad0, grad1, grad2, grad3, i)
        tl.store(context_grad + at, grad.to(context_grad.dtype.element_ty), mask=mask)


@triton.jit
def _add_product(total, value, grad0, grad1, grad2, grad3, i: tl.constexpr):
    if i >= 0 and i < 4:
        total = tl.math.fma(_pick(grad0, grad1, grad2, grad3, i), value, total)
    return total


@triton.jit
def _store_tap(tap_grad, total, tap_x, in_channels, i: tl.constexpr, TAPS: tl.constexpr, end):
    if i < TAPS:  # noqa: SIM102 - decided when the kernel is compiled
        if tap_x + i < end:
            tl.store(tap_grad, tl.sum(total, axis=0), mask=in_channels)


@triton.jit(do_not_specialize=IMAGE_SIZE)
def taps_backward(
    source,  # z^{l-1} (N, C), its rows `stride` apart.
    stride,
    pre_grad,  # Of pre^l (N, C).
    tap_grads,  # One part per chunk of groups (B * chunks, K * K, C).
    height,
    width,
    channels,
    K: tl.constexpr,
    TAPS: tl.constexpr,  # Up to 8.
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of TAPS taps of a row: sum_p pre_grad_p z^{l-1}_{p + offset of the tap}."""
    channels, stride = channels // ALIGN * ALIGN, stride // ALIGN * ALIGN
    per_row = tl.cdiv(width, 4)
    groups = height * per_row
    chunks = tl.cdiv(groups, CHUNK)
    first_row = (tl.program_id(0) // chunks).to(tl.int64) * (height * width)
    start = tl.program_id(0) % chunks * CHUNK
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = channel < channels
    parts = tl.cdiv(K, TAPS)
    tap_y, tap_x = tl.program_id(2) // parts, tl.program_id(2) % parts * TAPS
    total0 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total1 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total2 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total3 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total4 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total5 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total6 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    total7 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    for first in range(start, tl.minimum(start + CHUNK, groups), GROUPS):
        group = first + tl.arange(0, GROUPS)
        y, x = group // per_row, group % per_row * 4
        row = (first_row + y * width + x)[:, None]
        # Gradients of pixels beyond a row are loaded as zero, and so are those past the last row.
        grad = pre_grad + row * channels + channel[None, :]
        grad0 = _load(grad, y < height, in_channels)
        grad1 = _load(grad + channels, (y < height) & (x + 1 < width), in_channels)
        grad2 = _load(grad + 2 * channels, (y < height) & (x + 2 < width), in_channels)
        grad3 = _load(grad + 3 * channels, (y < height) & (x + 3 < width), in_channels)
        y, x = y + tap_y - K // 2, x + tap_x - K // 2
        in_row = (y >= 0) & (y < height)
        values = source + (first_row + y * width + x)[:, None] * stride + channel[None, :]
        # The sums beyond TAPS are not stored, so that compilers remove them.
        for i in tl.static_range(TAPS + 3):
            value = _load(values, in_row & (x + i >= 0) & (x + i < width), in_channels)
            total0 = _add_product(total0, value, grad0, grad1, grad2, grad3, i)
            total1 = _add_product(total1, value, grad0, grad1, grad2, grad3, i - 1)
            total2 = _add_product(total2, value, grad0, grad1, grad2, grad3, i - 2)
            total3 = _add_product(total3, value, grad0, grad1, grad2, grad3, i - 3)
            total4 = _add_product(total4, value, grad0, grad1, grad2, grad3, i - 4)
            total5 = _add_product(total5, value, grad0, grad1, grad2, grad3, i - 5)
            total6 = _add_product(total6, value, grad0, grad1, grad2, grad3, i - 6)
            total7 = _add_product(total7, value, grad0, grad1, grad2, grad3, i - 7)
            values += stride
    tap = (tl.program_id(0).to(tl.int64) * K + tap_y) * K + tap_x
    tap_grad = tap_grads + tap * channels + channel
    _store_tap(tap_grad, total0, tap_x, in_channels, 0, TAPS, K)
    _store_tap(tap_grad + 1 * channels, total1, tap_x, in_channels, 1, TAPS, K)
    _store_tap(tap_grad + 2 * channels, total2, tap_x, in_channels, 2, TAPS, K)
    _store_tap(tap_grad + 3 * channels, total3, tap_x, in_channels, 3, TAPS, K)
    _store_tap(tap_grad + 4 * channels, total4, tap_x, in_channels, 4, TAPS, K)
    _store_tap(tap_grad + 5 * channels, total5, tap_x, in_channels, 5, TAPS, K)
    _store_tap(tap_grad + 6 * channels, total6, tap_x, in_channels, 6, TAPS, K)
    _store_tap(tap_grad + 7 * channels, total7, tap_x, in_channels, 7, TAPS, K)
