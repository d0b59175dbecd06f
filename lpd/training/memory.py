"""How much memory a training needs in each process, from its shapes alone.

B images of N codes are computed at a time, in T = 2N rows of width D through L blocks, with V codes
to choose from. Of texts there are t rows more, padding among them, which are made of hidden states
of width E. With t = 128 there are 640, 2176 and 8320 rows at 256, 512 and 1024 pixels: multiples of
the 128 rows of FlexAttention's blocks, so that nothing is padded again.

A step holds the most either where the loss is made, or where its gradient is, or where a block's
gradients are; :func:`memory_of` takes the largest of these moments.

Counted are tensors. On top of them come the CUDA context and cuBLAS's and NCCL's own memory, about
1 to 2 GiB together, what the allocator cannot use of its blocks, and a checkpoint's copies, which
are in host memory. Compiled blocks fuse operations and need less, by how much depends on the
compiler. Attention is FlexAttention's, which keeps queries, keys, values, outputs and a number for
each row and head; a CPU's keeps something else.
"""

import dataclasses
from dataclasses import dataclass

from lpd.models.presets import MLP_RATIO, NUM_CLASSES, VOCAB_SIZE

# Of how many tokens a chunked loss has logits at a time: at 16,384 codes they are 268 MB in
# float32.
CHUNK_TOKENS = 4096

_FLOAT32, _BFLOAT16 = 4, 2
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a training's process computes, and how."""

    depth: int
    """L."""
    dim: int
    """D."""
    num_heads: int
    num_positions: int
    """N."""
    vocab_size: int = VOCAB_SIZE
    """V."""
    num_classes: int = NUM_CLASSES
    """Of a model of classes."""
    text_width: int = 0
    """E, of a model of texts."""
    text_length: int = 0
    """t, of a model of texts; 0 is for one of classes."""
    batch_size: int
    """B, of one forward pass."""
    bf16: bool = False
    """Whether autocast computes in bfloat16."""
    dropout: bool = True
    """Whether a mask is kept for each dropout."""
    recompute_every: int = 0
    """Of every so many blocks one is recomputed; 0 for none."""
    chunked_loss: bool = False
    average: bool = False
    """Whether there is an average of the weights."""
    sharded: bool = False
    """Whether processes share the weights (FSDP2) or have a copy each."""
    num_processes: int = 1

    @property
    def is_shared_out(self) -> bool:
        """Whether a process has less than all weights."""
        return self.sharded and self.num_processes > 1

    @property
    def num_rows(self) -> int:
        """T of all images."""
        return self.batch_size * (self.text_length + 2 * self.num_positions)

    @property
    def num_text_rows(self) -> int:
        """t of all images."""
        return self.batch_size * self.text_length

    @property
    def itemsize(self) -> int:
        """Bytes of a number that a linear layer reads or writes."""
        return _BFLOAT16 if self.bf16 else _FLOAT32

    @property
    def block_linears(self) -> int:
        """Parameters of a block's linear layers: 12 D^2 and biases."""
        hidden = int(self.dim * MLP_RATIO)
        return 4 * self.dim**2 + 2 * self.dim * hidden + 5 * self.dim + hidden

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.vocab_size * self.dim

    @property
    def text_linears(self) -> int:
        """Parameters of the two linear layers that make rows of texts."""
        if not self.text_length:
            return 0
        return self.text_width * self.dim + self.dim**2 + 2 * self.dim

    @property
    def conditions(self) -> int:
        """Parameters of classes or texts."""
        if not self.text_length:
            return self.num_classes * self.dim
        return self.text_length * self.dim + self.text_width + self.text_linears

    @property
    def parameters_outside_blocks(self) -> int:
        """Parameters that FSDP2 shares out together: embeddings, head and all norms."""
        rows = self.vocab_size + 2 * 2 * self.depth + 2 * 2
        return rows * self.dim + self.conditions + self.parameters_of_one_row + self.head

    @property
    def parameters_of_one_row(self) -> int:
        """Parameters that cannot be shared out, which the first process has: of positions, of the
        mask and of no class."""
        return (self.num_positions + 3) * self.dim

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return self.depth * self.block_linears + self.parameters_outside_blocks

    def recomputes(self, block: int) -> bool:
        """Whether the backward pass computes a block, from 0, again."""
        return self.recompute_every > 0 and block % self.recompute_every == 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes in a process at the step's largest moment, by what they are for."""

    weights: int
    """In float32; where they are sharded, the first process's share, which is the largest."""
    gradients: int
    """The same; DDP's buckets are these."""
    moments: int
    """Two of AdamW's for each weight, in float32."""
    average: int
    """Of the weights, in float32."""
    weight_copies: int
    """In bfloat16, which autocast makes of linear layers' weights and the backward pass keeps; of
    recomputed blocks until the forward pass ends, for autocast remembers them so long. FSDP2 sends
    blocks rounded already: the head's alone."""
    borrowed: int
    """What FSDP2 has whole for a while, with two or more processes: what is outside the blocks, the
    weights of two blocks, in the backward pass the gradients of one and of the head too."""
    activations: int
    """Kept for the backward pass: about 42 bytes in bfloat16 and 70 in float32 per row, block and
    channel, 4 in a recomputed block."""
    working: int
    """What comes and goes: logits with their gradient, or a block's gradients and, where it is
    recomputed, its activations."""

    @property
    def total(self) -> int:
        """Of all."""
        return sum(dataclasses.asdict(self).values())

    def in_gib(self) -> dict[str, float]:
        """All parts and the total, in GiB of two digits."""
        parts = {**dataclasses.asdict(self), "total": self.total}
        return {name: round(value / _GIB, 2) for name, value in parts.items()}


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """What differs between the moments of a step, in bytes."""

    weight_copies: int
    borrowed: int
    activations: int
    working: int


def memory_of(workload: Workload) -> Memory:
    """The memory of a step, from the second on: in the first there are no gradients beforehand."""
    share = _FLOAT32 * workload.num_parameters
    if workload.is_shared_out:
        whole = _FLOAT32 * workload.parameters_of_one_row
        share = whole + -(-(share - whole) // workload.num_processes)
    moments = (_forward_end(workload), _loss_backward(workload), *_block_backwards(workload))
    largest = max(moments, key=lambda moment: sum(dataclasses.asdict(moment).values()))
    return Memory(
        weights=share,
        gradients=share,
        moments=2 * share,
        average=share if workload.average else 0,
        **dataclasses.asdict(largest),
    )


def _forward_end(workload: Workload) -> _Moment:
    """Logits and their logarithms of probabilities, in float32, or of a chunk what its logarithm of
    a sum takes, beside the gradients that chunks add up; the last norm's output is not rounded yet,
    and autocast remembers all copies."""
    rows = _FLOAT32 * workload.dim * workload.batch_size * workload.num_positions
    return _Moment(
        weight_copies=_block_copies(workload, workload.depth)
        + _head_copy(workload)
        + _text_copies(workload),
        borrowed=_borrowed(workload),
        activations=_kept(workload, workload.depth) + _kept_by_head(workload),
        working=2 * _logits(workload) + (rows if workload.bf16 else 0) + _early_gradients(workload),
    )


def _loss_backward(workload: Workload) -> _Moment:
    """Logarithms of probabilities, their gradient, and the logits' gradient, in float32; with
    chunks the gradients that are there already."""
    return _Moment(
        weight_copies=_block_copies(workload, _num_kept(workload, workload.depth))
        + _head_copy(workload)
        + _text_copies(workload),
        borrowed=_borrowed(workload),
        activations=_kept(workload, workload.depth) + _kept_by_head(workload),
        working=_early_gradients(workload) or 3 * _logits(workload),
    )


def _block_backwards(workload: Workload) -> tuple[_Moment, ...]:
    """Of the last block, and of the last one that is recomputed."""
    last = workload.depth - 1
    blocks = {last}
    if workload.recompute_every:
        blocks.add(last - last % workload.recompute_every)
    return tuple(_block_backward(workload, block) for block in blocks)


def _block_backward(workload: Workload, block: int) -> _Moment:
    working = _gradients_row(workload)
    if workload.recomputes(block):
        working = max(working, _recomputing_row(workload)) + _block_row(workload)
        working -= _FLOAT32 * workload.dim  # its input is kept
    return _Moment(
        weight_copies=_block_copies(workload, _num_kept(workload, block) + 1)
        + _text_copies(workload),
        borrowed=_borrowed(workload) + _borrowed_gradients(workload),
        activations=_kept(workload, block + 1),
        working=workload.num_rows * working,
    )


def _gradients_row(workload: Workload) -> int:
    """Bytes of a row's gradients in a block: of its output in float32 and, in what linear layers
    are computed in, of the MLP's output and its hidden rows."""
    hidden = int(workload.dim * MLP_RATIO)
    return _FLOAT32 * workload.dim + workload.itemsize * (workload.dim + hidden)


def _recomputing_row(workload: Workload) -> int:
    """Bytes of a row while a block is recomputed, beside what is kept from then on: the gradient of
    its output, in float32 and rounded, and in the MLP what is rounded for its first layer and
    GELU's output, before the last mask."""
    dim, hidden = workload.dim, int(workload.dim * MLP_RATIO)
    rounding = _BFLOAT16 * dim + _FLOAT32 * dim if workload.bf16 else 0
    dropping = workload.itemsize * hidden - dim if workload.dropout else 0
    return _FLOAT32 * dim + rounding + dropping


def _block_row(workload: Workload) -> int:
    """Bytes that a block keeps of a row: the inputs of its two norms in float32, those of its four
    linear layers, queries with keys and values, the input of GELU, a mask of a byte for each of
    three dropouts, and attention's and the norms' statistics."""
    dim, hidden = workload.dim, int(workload.dim * MLP_RATIO)
    rounded = 3 * dim + 3 * dim + 2 * hidden
    masks = 2 * dim + hidden if workload.dropout else 0
    statistics = _FLOAT32 * (workload.num_heads + 4)
    return 2 * _FLOAT32 * dim + workload.itemsize * rounded + masks + statistics


def _input_bytes(workload: Workload) -> int:
    """The rows that a block reads, in float32: all that is kept of a recomputed one."""
    return workload.num_rows * _FLOAT32 * workload.dim


def _kept(workload: Workload, num_blocks: int) -> int:
    """Bytes kept by the first blocks, the norm before them and what makes rows of texts."""
    kept = _num_kept(workload, num_blocks)
    inputs = (num_blocks - kept + 1) * _input_bytes(workload)
    texts = workload.num_text_rows * _text_row(workload)
    return kept * workload.num_rows * _block_row(workload) + inputs + texts


def _text_row(workload: Workload) -> int:
    """Bytes that are kept of a row of text: hidden states in float32 before their norm, and the
    inputs of the first linear layer, of GELU and of the second one."""
    inputs = workload.itemsize * (workload.text_width + 2 * workload.dim)
    return _FLOAT32 * workload.text_width + inputs + _FLOAT32


def _kept_by_head(workload: Workload) -> int:
    """What the last norm and the head keep: all rows, and those of the queries once more."""
    rows = workload.batch_size * workload.num_positions
    return _input_bytes(workload) + workload.itemsize * workload.dim * rows


def _logits(workload: Workload) -> int:
    """Bytes of the logits in float32 that are there at a time."""
    tokens = workload.batch_size * workload.num_positions
    if workload.chunked_loss:
        tokens = min(tokens, CHUNK_TOKENS)
    return _FLOAT32 * tokens * workload.vocab_size


def _early_gradients(workload: Workload) -> int:
    """Bytes of the gradients that a chunked loss makes with its logits: of the head's weight, in
    float32, and of the rows that it reads."""
    if not workload.chunked_loss:
        return 0
    rows = workload.batch_size * workload.num_positions
    return workload.dim * (_FLOAT32 * workload.vocab_size + workload.itemsize * rows)


def _num_kept(workload: Workload, num_blocks: int) -> int:
    """How many of the first blocks are not recomputed."""
    return num_blocks - sum(map(workload.recomputes, range(num_blocks)))


def _block_copies(workload: Workload, num_blocks: int) -> int:
    rounds = workload.bf16 and not workload.is_shared_out
    return _BFLOAT16 * num_blocks * workload.block_linears if rounds else 0


def _head_copy(workload: Workload) -> int:
    return _BFLOAT16 * workload.head if workload.bf16 else 0


def _text_copies(workload: Workload) -> int:
    return _BFLOAT16 * workload.text_linears if workload.bf16 else 0


def _borrowed(workload: Workload) -> int:
    """Weights that FSDP2 has whole at any time."""
    if not workload.is_shared_out:
        return 0
    blocks = 2 * workload.itemsize * workload.block_linears
    return blocks + _FLOAT32 * workload.parameters_outside_blocks


def _borrowed_gradients(workload: Workload) -> int:
    """Gradients that FSDP2 has whole while it shares out the last ones."""
    if not workload.is_shared_out:
        return 0
    return _FLOAT32 * (workload.block_linears + workload.head)
