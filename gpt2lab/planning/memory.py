"""Peak memory of a rank by part, for this code: what lies in memory at the moment when most does.

With N parameters, M of them in matrix products, n tokens in a micro batch, and C, L, V as in the model (bytes):

    weights         4 N, and in 16 bits 2 M: autocast keeps a copy of each matrix until the backward pass has used it
    gradients       4 N
    optimizer       8 N; with Muon 4 N for the matrices of the blocks
    activations     a n L C: what the backward pass needs; a counted (docs/planning.md), 4 with checkpointing
    logits          2 n V in 16 bits, 4 n V in 32: the loss and its gradient are computed in place
    working         operands of the operation that runs at that moment
    communication   blocks that are gathered, and NCCL's buffers
    process         CUDA context and libraries; on a CPU Python and torch

Four moments compete: the loss (all activations, all logits), the first operations of the backward pass, its end (all
gradients, one block's activations), and Muon's step, which orthogonalizes all matrices of one shape together. FSDP2
shards weights, gradients and optimizer over the ranks, but autocast's copies are of gathered weights, so they are as
large as without it.
"""

from dataclasses import dataclass, fields, replace

from gpt2lab.config import GPT2Config
from gpt2lab.model import flops

GIB = 2**30

# Bytes per token and channel that a block keeps for the backward pass: 32 bits; 16 bits; 16 bits compiled.
# 16 bits: inputs of both layer norms in fp32 (8), their outputs (4), q, k, v (6), attention's result (2), GELU's input
# and output (16). Inductor keeps one residual in 16 bits.
# modern, 16 bits: inputs of both norms (8), their outputs, one of them cast for each of q, k and v (8), rotated q and k
# in fp32 (8), q, k, v (6), attention's result (2), outputs of ReLU and of the square (16). Compiled, one cast.
_BLOCK_32, _BLOCK_16, _BLOCK_16_COMPILED = (
    {"gpt2": 64.0, "modern": 76.0},
    {"gpt2": 36.0, "modern": 48.0},
    {"gpt2": 34.0, "modern": 44.0},
)
_STATISTICS = {"gpt2": 4, "modern": 12}  # bytes of a head and token: of attention, and of the norms of q and k
_WORKING_32, _WORKING_16 = 4.0, 13.0  # gradients inside a block, likewise
# The same for the last block, which is computed again while the inputs of all blocks are kept; counted on a CPU.
_RECOMPUTED = {False: {"gpt2": 9.0, "modern": 40.0}, True: {"gpt2": 5.0, "modern": 17.0}}  # by: in 16 bits
_FLOAT32_CHUNK = {"cuda": 2**26, "cpu": 2**19}  # logits in fp32 at a time (model/ops.py)
_PROCESS = {"cuda": 0.6e9, "cpu": 0.33e9}
# On a CPU, of the logits and of all else: what the heap holds in pieces that do not fit (docs/results/planning.md).
_CPU_HEAP_LOGITS, _CPU_HEAP = 0.83, 0.075
_CPU_HEAP_MUON = 1.5  # of Muon's step, whose tensors are larger than the free pieces
_NCCL = 0.4e9
_MAX_BLOCKWISE_LENGTH, _QUERY_BLOCK = 2048, 256  # attention in 16 bits on a CPU (model/ops.py)
# Of `train.micro_batch_size auto`, here and in training (training/memory.py).
AUTO_FRACTION = 0.9  # of the free memory: evaluations and fragmentation need the rest
AUTO_TOKENS = 65536  # at most, of a micro batch: larger ones are not faster


@dataclass(frozen=True)
class Layout:
    """How a run uses the memory of a rank."""

    micro_batch_size: int
    grad_accum_steps: int = 1
    gpus: int = 1
    shard: bool = False  # FSDP2
    checkpointing: bool = False
    precision: str = "bf16"
    compiled: bool = True
    device: str = "cuda"
    keeps_copies: bool = True  # of all weights in 16 bits, as autocast does; False: a block at a time, as FSDP's policy
    muon: bool = False  # for the matrices of the blocks

    @property
    def ranks_share(self) -> int:
        """Number of ranks over which weights, gradients and optimizer are divided."""
        return self.gpus if self.shard else 1


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    working: float
    communication: float
    process: float

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """The bytes by name of the part."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def estimate(model: GPT2Config, layout: Layout) -> Memory:
    """Estimate the peak memory of a rank.

    Args:
        model: the architecture.
        layout: micro batch, ranks, precision.

    Returns:
        The parts at the moment of the peak.
    """
    N, C, V = flops.parameters(model), model.n_embd, model.vocab_size
    n = layout.micro_batch_size * model.block_size
    half = layout.precision in ("bf16", "fp16", "fp8")
    matrices = 12 * model.n_layer * C * C + V * C
    share = layout.ranks_share
    element = 2 if half else 4
    head_copy = 2.0 * V * C * half
    # Compiled code has no cache of copies, and with checkpointing the backward pass makes them again.
    keeps_copies = layout.keeps_copies and not (layout.compiled and layout.checkpointing)
    copies = 2.0 * matrices * half if keeps_copies else head_copy
    block = _block_bytes(model, layout) * n * C
    embedding = 4.0 * (model.architecture == "modern")  # which is normalized
    head_input = (embedding + 4.0 + element) * n * C  # of the last norm, in fp32, and of the head
    kept = (4.0 * n * C if layout.checkpointing else block) * model.n_layer + head_input
    # Gradients that exist before the backward pass: of earlier micro-steps, or as DistributedDataParallel's buckets.
    early = layout.grad_accum_steps > 1 or layout.gpus > 1
    gradients, logits = 4.0 * N / share, float(element * n * V)
    softmax = 0.0 if layout.compiled else _softmax_working(n * V, layout)
    in_blocks = 12.0 * model.n_layer * C * C if layout.muon else 0.0
    head = element * V * C + 2 * n * C * element if layout.compiled else _head_working(n, C, V, element, layout.device)

    def at(gradients: float, copies: float, activations: float, logits: float, working: float) -> Memory:
        return Memory(
            weights=4.0 * N / share + copies,
            gradients=gradients,
            optimizer=(8.0 * N - 4.0 * in_blocks) / share,
            activations=activations,
            logits=logits,
            working=working,
            communication=_communication(model, layout, N),
            process=_PROCESS[layout.device],
        )

    after = head_copy if layout.checkpointing else copies  # outside of autocast, its cache is empty
    moments = [
        at(gradients * early, copies, kept, logits, softmax),
        at(gradients * early, after, kept, logits, head),
        at(gradients, 0.0, block, 0.0, (_WORKING_16 if half else _WORKING_32) * n * C + 6.0 * V * C * layout.compiled),
        at(gradients, 0.0, 0.0, 0.0, _muon_working(model, layout)),
    ]
    if layout.checkpointing:
        moments.append(at(gradients * early, after, kept + block, 0.0, _RECOMPUTED[half][model.architecture] * n * C))
    peak = max(moments, key=lambda moment: moment.total)
    if layout.device != "cpu":
        return peak
    allocated = peak.total - peak.process
    heap = _CPU_HEAP_LOGITS * logits + _CPU_HEAP * max(0.0, allocated - logits)
    heap += _CPU_HEAP_MUON * _muon_working(model, layout)
    heap += 4.0 * V * C * (not model.tie_word_embeddings)  # gradient of the embedding, in one piece
    return replace(peak, process=peak.process + heap)


def _block_bytes(model: GPT2Config, layout: Layout) -> float:
    """Bytes per token and channel that a block keeps."""
    heads, kind = model.n_head / model.n_embd, model.architecture
    statistics = _STATISTICS[kind] * heads
    if layout.precision not in ("bf16", "fp16", "fp8"):
        return _BLOCK_32[kind] + statistics
    if layout.device == "cpu":
        blockwise = model.block_size <= _MAX_BLOCKWISE_LENGTH
        probabilities = (model.block_size + min(_QUERY_BLOCK, model.block_size)) * heads
        return _BLOCK_16[kind] + (probabilities + statistics - 4 * heads if blockwise else statistics)
    return (_BLOCK_16_COMPILED if layout.compiled else _BLOCK_16)[kind] + statistics


def _muon_working(model: GPT2Config, layout: Layout) -> float:
    """Bytes of Muon's step (training/muon.py) for the shape with the most elements, 4 L C^2 of them.

    These are stacked gradients in fp32, and while they are orthogonalized the matrices before and after an iteration
    with two products of the smaller dimension: as large as the matrices if these are square, as all of q, k, v and the
    output projection of the modern architecture are. Ranks share the matrices, and gather the result in fp32.
    """
    if not layout.muon:
        return 0.0
    elements = 4.0 * model.n_layer * model.n_embd**2
    element = 2.0 if layout.precision == "bf16" else 4.0
    products = 2 * element if model.architecture == "modern" else element / 2
    iteration = 2 * element + products
    result = element + products / 2 + (4.0 if element == 2 else 0.0)  # converted to fp32
    if layout.gpus == 1:
        return elements * (4.0 + max(4.0, iteration, result))
    return elements * max(8.0 + max(iteration, result) / layout.gpus, 12.0 + 4.0 / layout.gpus)


def _softmax_working(logits: int, layout: Layout) -> float:
    """Some logits in fp32 and their softmax (`cross_entropy` in model/ops.py)."""
    copies = 2 if layout.precision == "bf16" or layout.device == "cpu" else 1  # torch converts fp16 inside its kernel
    return 4.0 * copies * min(_FLOAT32_CHUNK[layout.device], logits)


def _head_working(n: int, C: int, V: int, element: int, device: str) -> float:
    """Operands of the head's backward pass without the compiler: dW in fp32, and either dW or dX before conversion."""
    columns = 8192 if device == "cpu" else V  # a strip of dW at a time (model/ops.py)
    strip = min(columns, V) * C * element if element == 2 or device == "cpu" else 0.0
    strip *= 2 if element == 4 else 1  # oneDNN's result is copied (`linear` in model/ops.py)
    return 4.0 * V * C + element * n * C + max(strip, (element + 4.0) * n * C)


def _communication(model: GPT2Config, layout: Layout, parameters: int) -> float:
    """Parameters gathered by FSDP2, in fp32: two blocks, and all that is not in blocks with its gradient."""
    if layout.gpus == 1:
        return 0.0
    buffers = _NCCL if layout.device == "cuda" else 0.0
    if not layout.shard:
        return buffers
    blocks = 12.0 * model.n_layer * model.n_embd**2
    gathered = 4.0 if layout.keeps_copies else 2.0
    return buffers + gathered * 2 * (blocks / model.n_layer + parameters - blocks)


def largest_micro_batch(model: GPT2Config, layout: Layout, sequences: int, available: float) -> int:
    """Find the largest divisor of a rank's sequences that fits.

    Args:
        model: the architecture.
        layout: everything but the micro batch.
        sequences: of a rank in an optimizer step.
        available: bytes.

    Returns:
        The micro batch size in sequences; 0 if not even one sequence fits.
    """
    fitting = 0
    for size in (n for n in range(1, sequences + 1) if sequences % n == 0):
        if (
            estimate(model, replace(layout, micro_batch_size=size, grad_accum_steps=sequences // size)).total
            > available
        ):
            break
        fitting = size
    return fitting
