"""The Triton kernels of :mod:`lpd.sampling.kernels`, and what launches them.

Letters are as there; the functions of the same names take and return the same. They want tensors on
one GPU, whose last dimension is contiguous; other strides are free, so that a layer's part of the
cache, or the query rows of a pass, need not be copied. Triton's interpreter runs them on CPU
tensors: set TRITON_INTERPRET=1 before Triton is first imported.

Lengths (T, ``start``, numbers of context rows) differ from pass to pass and are ordinary arguments
that Triton does not specialise on: it compiles for a width and a tile, a handful of times.

**Tiles are reasoned, not measured.** At batch 1 a pass has 4 to 100 rows, so a matrix product reads
its weights once and waits for memory. What matters is that every multiprocessor (132 on an H100)
reads: :func:`_tile` takes the largest tile of which there are still enough. Small tiles do what
splitting the inner dimension would, without a second launch, a workspace or an order of additions
that varies: a sum is made by one program, and a kernel gives the same bits every time. The price is
that rows are read by more programs, from the L2 cache, and their mean and variance are found by
each: 16 rows of 1024 numbers fit in the L1 cache, so the second and third reading are cheap.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpd.models.kv_cache import lengths

# A wave of programs. Published widths are multiples of 128, so 132 would ask for a second one.
ENOUGH_PROGRAMS = 128
# Rows and columns of the output that a program computes, smallest first.
TILES = ((16, 8), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128))
# By rows of a tile: numbers of each row that a program reads at a time, if they have two bytes.
# Bytes on their way hide how long memory takes, 25 bytes a nanosecond and multiprocessor for 700
# ns: the fewer rows and columns a program has, the more of each it asks for.
INNER = {16: 256, 32: 128, 64: 64, 128: 64}
# Rows and keys that a program of attention holds at a time. More rows of four bytes than 32 do not
# fit its registers.
ATTENTION_ROWS = (16, 32, 64)
ATTENTION_KEYS = 64

# The interpreter multiplies the bits of bfloat16 matrices as integers. Widened, products are the
# same: a GPU too makes them exactly and adds them up in float32.
_WIDEN = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _dot(a, b, total):
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    # Float32 weights are asked for where results must agree, so not tf32.
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _norm_and_multiply(
    x_rows,
    in_rows,
    norm_weight,
    norm_bias,
    eps,
    weight,
    columns,
    num_columns: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) of LayerNorm(x) times the weight, from pointers to rows of x."""
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for first in range(0, D, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        mask = in_rows[:, None] & (k < D)[None, :]
        total += tl.load(x_rows[:, None] + k[None, :], mask=mask, other=0.0)
    mean = tl.sum(total, 1) / D  # (BLOCK_M,)
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for first in range(0, D, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        mask = in_rows[:, None] & (k < D)[None, :]
        x = tl.load(x_rows[:, None] + k[None, :], mask=mask, other=0.0)
        centred = tl.where(mask, x - mean[:, None], 0.0)
        total += centred * centred
    scale = tl.rsqrt(tl.sum(total, 1) / D + eps)  # (BLOCK_M,)
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, D, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        mask = in_rows[:, None] & (k < D)[None, :]
        x = tl.load(x_rows[:, None] + k[None, :], mask=mask, other=0.0)
        # Both are 0 beyond the width, and so is what comes of it.
        gain = tl.load(norm_weight + k, mask=k < D, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + k, mask=k < D, other=0.0).to(tl.float32)
        normed = (x - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]
        w = tl.load(
            weight + columns[None, :] * D + k[:, None],
            mask=(columns < num_columns)[None, :] & (k < D)[:, None],
            other=0.0,
        )  # (BLOCK_K, BLOCK_N)
        product = _dot(normed.to(w.dtype), w, product)
    return product


@triton.jit(do_not_specialize=["num_rows", "T", "start"])
def _norm_qkv(
    x,
    norm_weight,
    norm_bias,
    weight,
    bias,
    q,
    kv,
    eps,
    num_rows,
    T,
    start,
    x_sequence,
    x_row,
    kv_part,
    kv_sequence,
    kv_head,
    kv_row,
    D: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < num_rows
    sequence = (rows // T).to(tl.int64)
    place = rows % T
    product = _norm_and_multiply(
        x + sequence * x_sequence + place * x_row,
        in_rows,
        norm_weight,
        norm_bias,
        eps,
        weight,
        columns,
        3 * D,
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    in_columns = columns < 3 * D
    product += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    mask = in_rows[:, None] & in_columns[None, :]
    # A tile may hold the end of the queries and the beginning of the keys.
    part = (columns // D).to(tl.int64)
    q_at = q + rows.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(q_at, product.to(q.dtype.element_ty), mask=mask & (part == 0)[None, :])
    of_row = sequence * kv_sequence + (start + place) * kv_row
    of_column = (part - 1) * kv_part + columns % D // C * kv_head + columns % C
    kv_at = kv + of_row[:, None] + of_column[None, :]
    tl.store(kv_at, product.to(kv.dtype.element_ty), mask=mask & (part > 0)[None, :])


@triton.jit(do_not_specialize=["T", "context_rows", "context_end", "end"])
def _attend(
    q,
    kv,
    bias,
    out,
    scale,
    T,
    context_rows,
    context_end,
    end,
    q_sequence,
    q_row,
    q_head,
    kv_part,
    kv_sequence,
    kv_head,
    kv_row,
    bias_sequence,
    H: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIASED: tl.constexpr,
):
    sequence = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    # A tile is all context rows or all query rows, so its rows see the same keys: there is a length
    # and no mask, and a context row does not read a query row's key or value at all.
    tile = tl.program_id(1)
    context_tiles = (context_rows + BLOCK_M - 1) // BLOCK_M
    if tile < context_tiles:
        first_row = tile * BLOCK_M
        end_row = context_rows
        length = context_end
    else:
        first_row = context_rows + (tile - context_tiles) * BLOCK_M
        end_row = T
        length = end
    rows = first_row + tl.arange(0, BLOCK_M)
    channels = tl.arange(0, BLOCK_C)
    in_rows = (rows < end_row)[:, None]
    in_channels = channels < C
    queries = tl.load(
        q + sequence * q_sequence + head * q_head + rows[:, None] * q_row + channels[None, :],
        mask=in_rows & in_channels[None, :],
        other=0.0,
    )  # (BLOCK_M, BLOCK_C)
    keys = kv + sequence * kv_sequence + head * kv_head
    values = keys + kv_part
    highest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    weights = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for first in range(0, length, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        seen = n < length
        k = tl.load(
            keys + n[None, :] * kv_row + channels[:, None],
            mask=seen[None, :] & in_channels[:, None],
            other=0.0,
        )  # (BLOCK_C, BLOCK_N)
        scores = _dot(queries, k, tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * scale
        if BIASED:
            # 0, or so low that nothing is left, in whatever unit.
            at = bias + sequence * bias_sequence + n
            scores += tl.load(at, mask=seen, other=0.0).to(tl.float32)[None, :]
        scores = tl.where(seen[None, :], scores, -float("inf"))
        # The first block has a key, so `highest` is finite from there on. Where a bias hides all of
        # a block's keys, what they add is shrunk to 0 by the first key that is not hidden.
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - new_highest)
        p = tl.exp2(scores - new_highest[:, None])
        weights = weights * shrink + tl.sum(p, 1)
        v = tl.load(
            values + n[:, None] * kv_row + channels[None, :],
            mask=seen[:, None] & in_channels[None, :],
            other=0.0,
        )  # (BLOCK_N, BLOCK_C)
        result = _dot(p.to(v.dtype), v, result * shrink[:, None])
        highest = new_highest
    result = result / weights[:, None]
    out_at = out + (sequence * T + rows)[:, None] * (H * C) + head * C + channels[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=in_rows & in_channels[None, :])


@triton.jit(do_not_specialize=["num_rows", "T"])
def _project(
    x,
    weight,
    bias,
    residual,
    out,
    num_rows,
    T,
    x_sequence,
    x_row,
    residual_sequence,
    residual_row,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < num_rows
    in_columns = columns < D
    sequence = (rows // T).to(tl.int64)
    place = rows % T
    x_rows = x + sequence * x_sequence + place * x_row
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = tl.load(
            x_rows[:, None] + k[None, :], mask=in_rows[:, None] & (k < K)[None, :], other=0.0
        )
        w = tl.load(
            weight + columns[None, :] * K + k[:, None],
            mask=in_columns[None, :] & (k < K)[:, None],
            other=0.0,
        )
        product = _dot(a, w, product)
    product += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    mask = in_rows[:, None] & in_columns[None, :]
    residual_rows = residual + sequence * residual_sequence + place * residual_row
    product += tl.load(residual_rows[:, None] + columns[None, :], mask=mask, other=0.0)
    tl.store(out + rows.to(tl.int64)[:, None] * D + columns[None, :], product, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "T"])
def _norm_mlp_in(
    x,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    eps,
    num_rows,
    T,
    x_sequence,
    x_row,
    F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < num_rows
    in_columns = columns < F
    sequence = (rows // T).to(tl.int64)
    product = _norm_and_multiply(
        x + sequence * x_sequence + rows % T * x_row,
        in_rows,
        norm_weight,
        norm_bias,
        eps,
        weight,
        columns,
        F,
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    product += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    product = 0.5 * product * (1.0 + tl.erf(product * 0.7071067811865476))
    tl.store(
        out + rows.to(tl.int64)[:, None] * F + columns[None, :],
        product.to(out.dtype.element_ty),
        mask=in_rows[:, None] & in_columns[None, :],
    )


@triton.jit(
    do_not_specialize=["g"],
    # Slices of what a whole generation uses: where they begin depends on the pass.
    do_not_specialize_on_alignment=["scales", "uniforms"],
)
def _guided_draw(
    logits,
    unconditional,
    scales,
    uniforms,
    tokens,
    temperature,
    g,
    logits_sequence,
    logits_row,
    uniforms_image,
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    GUIDED: tl.constexpr,
):
    row = tl.program_id(0)
    image = (row // g).to(tl.int64)
    place = row % g
    codes = tl.arange(0, BLOCK_V)
    in_codebook = codes < V
    at = image * logits_sequence + place * logits_row + codes
    x = tl.load(logits + at, mask=in_codebook, other=0.0).to(tl.float32)
    if GUIDED:
        # As torch.lerp does it: from the nearer end.
        start = tl.load(unconditional + at, mask=in_codebook, other=0.0).to(tl.float32)
        scale = tl.load(scales + place)
        x = tl.where(
            tl.abs(scale) < 0.5, start + scale * (x - start), x - (x - start) * (1.0 - scale)
        )
    x = tl.where(in_codebook, x / temperature, -float("inf"))
    p = tl.exp(x - tl.max(x, 0))
    p = p / tl.sum(p, 0)
    cumulative = tl.cumsum(p, 0)
    target = tl.load(uniforms + image * uniforms_image + place) * tl.max(cumulative, 0)
    # A parallel sum may rise by a rounding error where it should stay, so tokens of probability 0
    # are left out. Where u * total rounds up to the total, no entry is above it.
    possible = p > 0.0
    token = tl.min(tl.where((cumulative > target) & possible, codes, BLOCK_V), 0)
    last_possible = tl.max(tl.where(possible, codes, 0), 0)
    tl.store(tokens + row, tl.minimum(token, last_possible).to(tl.int64))


def norm_qkv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    kv: Tensor,
    start: int,
) -> Tensor:
    num_sequences, num_rows, dim = x.shape
    num_heads, head_dim = kv.shape[2], kv.shape[4]
    assert weight.is_contiguous()
    assert x.stride(2) == kv.stride(4) == 1
    q = weight.new_empty(num_sequences, num_rows, num_heads, head_dim)
    grid, tile = _tile(num_sequences * num_rows, 3 * dim, dim, weight)
    _norm_qkv[grid](
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        q,
        kv,
        eps,
        num_sequences * num_rows,
        num_rows,
        start,
        *x.stride()[:2],
        *kv.stride()[:4],
        D=dim,
        C=head_dim,
        **tile,
    )
    return q


def attend(
    q: Tensor,
    kv: Tensor,
    start: int,
    num_context: int,
    queries_only: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    num_sequences, num_rows, num_heads, head_dim = q.shape
    assert q.stride(3) == kv.stride(4) == 1
    assert bias is None or bias.stride(3) == 1
    context_rows, context_end, end = lengths(num_rows, start, num_context, queries_only)
    out = q.new_empty(num_sequences, num_rows, num_heads * head_dim)
    groups = num_sequences * num_heads
    # One program reads all keys of its rows. Splitting them among programs would need a second
    # launch, or programs that wait for each other, to put the parts together: at batch 1 there are
    # 32 heads or more, twice as many tiles, and 256 keys are 64 KiB, so one launch is as long as
    # it takes to start. From about a thousand keys on, that is the first thing to try.
    block_m = ATTENTION_ROWS[0]
    for rows in ATTENTION_ROWS[: 2 if q.dtype == torch.float32 else 3]:
        if groups * _num_tiles(context_rows, num_rows, rows) >= ENOUGH_PROGRAMS:
            block_m = rows
    _attend[groups, _num_tiles(context_rows, num_rows, block_m)](
        q,
        kv,
        bias,
        out,
        # exp2 is what a GPU has, so scores are in units of log 2.
        1 / math.sqrt(head_dim) / math.log(2),
        num_rows,
        context_rows,
        context_end,
        end,
        *q.stride()[:3],
        *kv.stride()[:4],
        0 if bias is None else bias.stride(0),
        H=num_heads,
        C=head_dim,
        BLOCK_C=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_M=block_m,
        BLOCK_N=ATTENTION_KEYS // (q.element_size() // 2),
        BIASED=bias is not None,
        num_warps=4,
        num_stages=3,
    )
    return out


def project(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    num_sequences, num_rows, dim_in = x.shape
    dim = len(weight)
    assert weight.is_contiguous()
    assert x.stride(2) == residual.stride(2) == 1
    out = residual.new_empty(residual.shape)
    grid, tile = _tile(num_sequences * num_rows, dim, dim_in, weight)
    _project[grid](
        x,
        weight,
        bias,
        residual,
        out,
        num_sequences * num_rows,
        num_rows,
        *x.stride()[:2],
        *residual.stride()[:2],
        D=dim,
        K=dim_in,
        **tile,
    )
    return out


def norm_mlp_in(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor
) -> Tensor:
    num_sequences, num_rows, dim = x.shape
    assert weight.is_contiguous()
    assert x.stride(2) == 1
    out = weight.new_empty(num_sequences, num_rows, len(weight))
    grid, tile = _tile(num_sequences * num_rows, len(weight), dim, weight)
    _norm_mlp_in[grid](
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        eps,
        num_sequences * num_rows,
        num_rows,
        *x.stride()[:2],
        F=len(weight),
        D=dim,
        **tile,
    )
    return out


def guided_draw(
    logits: Tensor, scales: Tensor | None, temperature: float, uniforms: Tensor
) -> Tensor:
    num_images, num_tokens = uniforms.shape
    vocab_size = logits.shape[2]
    assert logits.stride(2) == 1
    assert uniforms.stride(1) == 1
    assert scales is None or scales.stride(0) == 1
    tokens = uniforms.new_empty(uniforms.shape, dtype=torch.int64)
    # One program holds a row's logits in its registers, 32 numbers a thread.
    block = max(16, triton.next_power_of_2(vocab_size))
    _guided_draw[(num_images * num_tokens,)](
        logits,
        logits[num_images:],
        scales,
        uniforms,
        tokens,
        temperature,
        num_tokens,
        *logits.stride()[:2],
        uniforms.stride(0),
        V=vocab_size,
        BLOCK_V=block,
        GUIDED=scales is not None,
        num_warps=min(16, max(1, block // 1024)),
    )
    return tokens


def _tile(
    num_rows: int, num_columns: int, dim_in: int, weight: Tensor
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid and the tile of a matrix product: the largest tile of which there are enough."""

    def grid(tile: tuple[int, int]) -> tuple[int, int]:
        return triton.cdiv(num_columns, tile[1]), triton.cdiv(num_rows, tile[0])

    block_m, block_n = TILES[0]
    for tile in TILES:
        is_empty = tile[0] > 16 and tile[0] >= 2 * num_rows  # at least half of it
        if math.prod(grid(tile)) >= ENOUGH_PROGRAMS and not is_empty:
            block_m, block_n = tile
    block_k = INNER[block_m] * 2 // weight.element_size()
    return grid((block_m, block_n)), {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": max(16, min(block_k, triton.next_power_of_2(dim_in))),
        "num_warps": 4 if block_m * block_n <= 64 * 64 else 8,
        "num_stages": 4 if block_m < 128 else 3,
    }


def _num_tiles(context_rows: int, num_rows: int, block_m: int) -> int:
    return int(triton.cdiv(context_rows, block_m) + triton.cdiv(num_rows - context_rows, block_m))
