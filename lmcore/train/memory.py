"""Memory of a training before it starts: an estimate from the shapes, and the micro-batch that fits."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch

from lmcore.errors import ParameterError
from lmcore.hardware.measure import DTYPES, available_memory, total_memory
from lmcore.hardware.params import Precision
from lmcore.hardware.resolve import Hardware
from lmcore.model.attention import cut_into_blocks
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.runtime.progress import show_bytes
from lmcore.train.loss import WHOLE_LOGITS_BYTES
from lmcore.train.optimizer import OPTIMIZERS, is_hidden_matrix
from lmcore.train.params import TrainParams

FP32 = 4  # bytes
# Activations of the MLP's width that its gradient needs: SwiGLU's two inputs, the gate's activation and the product.
MLP_WIDTHS = {"gelu": 2, "relu2": 2, "swiglu": 4}
# The part of a device's memory that an `auto` micro-batch may fill. Main memory is shared with all else that runs.
FILLED = {"cpu": 0.5, "mps": 0.5, "cuda": 0.9}
# The part of the free memory that eager tensors can fill on a CPU: between them glibc's heap keeps gaps. A step of
# 2.2 GB by its tensors took 3.7 GB (6 x 384, 32 x 256 tokens, fp32), one of 0.8 GB took 1.0. Compiled ones took less
# than the estimate.
HEAP_FILLED = 0.6


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process needs at the peak of a step; `optimizer` holds the moving average of the weights too."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits


Estimate = Callable[[Hardware], MemoryEstimate]


def estimate_memory(
    hardware: Hardware, params: TrainParams, model_params: ModelParams, vocab_size: int
) -> MemoryEstimate:
    """Return the memory of a training step from its shapes; with `sharding: full` all processes divide the weights.

    | part        | bytes                                                                                        |
    |-------------|----------------------------------------------------------------------------------------------|
    | parameters  | 4 per parameter                                                                              |
    | gradients   | 4 per parameter                                                                              |
    | optimizer   | of OPTIMIZERS: AdamW 8 per parameter, Muon 4 for the matrices of blocks; average 4           |
    | logits      | scores, their log-probabilities and the gradient (`_logits_bytes`)                           |
    | activations | what the blocks keep for their gradients (`_block_bytes`), with `activation_checkpointing`   |
    |             | their inputs alone; or what a later moment needs beyond the logits, if that is more          |

    With `train.lora_rank` gradients and the optimizer's are of the adapters alone, and the average is still of all.

    Without `compile` this is what eager PyTorch keeps; the compiler keeps as much or less, but for attention on a CPU.
    """
    counts, optimizer = count_parameters(model_params, vocab_size), OPTIMIZERS[params.optimizer]
    precision, rows = hardware.precision, hardware.micro_batch_size
    whole, trained, matrices = counts.all, counts.all, counts.matrices
    if params.lora_rank is not None:
        trained = matrices = params.lora_rank * counts.sides
        whole += trained
    numbers = optimizer.matrix_state * matrices + optimizer.other_state * (trained - matrices)
    numbers += 0 if params.ema_decay is None else whole
    text, masks = rows * model_params.context_length, rows * model_params.trained_masks
    tokens = text + masks
    logits = _logits_bytes(model_params, vocab_size, text)  # those of masks come later and are gone before
    # Autocast casts each matrix once per pass and keeps the copy.
    cast = 0 if precision == "fp32" else DTYPES[precision].itemsize * counts.matrices // model_params.n_layers
    block = rows * _block_bytes(model_params, precision, hardware.device, hardware.compile) + cast
    moments = list(_moments(model_params, tokens, block, logits, precision, hardware.activation_checkpointing))
    if model_params.tie_embeddings:  # the gradients of head and embedding are added when all else is gone
        moments.append(3 * FP32 * vocab_size * model_params.d_model)
    moments.append(optimizer.work_bytes * counts.largest_set)
    shards = hardware.processes if hardware.sharding == "full" else 1
    if shards > 1:
        # What lies outside the blocks is whole with its gradient, and so are a block and the next one. A validation
        # puts the whole model together.
        gathered = 2 * (counts.all - counts.matrices) + 2 * counts.matrices // model_params.n_layers
        moments = [*(moment + FP32 * gathered for moment in moments), FP32 * counts.all]
    return MemoryEstimate(
        parameters=-(-FP32 * whole // shards),
        gradients=-(-FP32 * trained // shards),
        optimizer=-(-FP32 * numbers // shards),
        activations=max(moments) - logits,
        logits=logits,
    )


def _moments(
    params: ModelParams, tokens: int, block: int, logits: int, precision: Precision, checkpointing: bool
) -> Iterator[int]:
    """Bytes beside the weights at the end of the forward pass and, if blocks are computed again, after that.

    `block` bytes are what one block keeps. A block that is computed again is there with its widest gradient.
    """
    around = tokens * (_norm_bytes(params, FP32) + (params.context_length if params.document_mask else 0))
    if not checkpointing:
        yield around + params.n_layers * block + logits
        return
    inputs = around + params.n_layers * tokens * params.d_model * FP32
    yield inputs + logits
    yield inputs + block + tokens * DTYPES[precision].itemsize * MLP_WIDTHS[params.mlp] // 2 * params.ff_width


class ParameterCounts(NamedTuple):
    """Trainable numbers, tied weights once: all, those in matrices inside blocks, those of the most common shape.

    `sides` are the rows and columns of those matrices, added up.
    """

    all: int
    matrices: int
    largest_set: int
    sides: int


@functools.cache
def count_parameters(params: ModelParams, vocab_size: int) -> ParameterCounts:
    """What a model would have, without its memory."""
    model, sets = GPT.outline(params, vocab_size), Counter[torch.Size]()
    matrices = [weight.shape for name, weight in model.named_parameters() if is_hidden_matrix(name, weight)]
    for shape in matrices:
        sets[shape] += shape.numel()
    return ParameterCounts(model.count_parameters(), sets.total(), max(sets.values()), sum(map(sum, matrices)))


def _block_bytes(params: ModelParams, precision: Precision, device: str, compiled: bool) -> int:
    """What a block keeps of one sequence for its gradient.

    b bytes in matrix products (fp32 4, else 2); W is a head's width, Q = H W that of all.

    | part            | bytes per token                                                                  |
    |-----------------|----------------------------------------------------------------------------------|
    | each of 2 norms | its input 4 D, RMSNorm's quotient 4 D, its output for the next product b D       |
    | attention       | queries, keys, values b (Q + 2 K W) and the mixture b Q                          |
    | ... qk_norm     | quotients 4 (Q + K W), below fp32 also inputs in fp32; results b (Q + K W); the  |
    |                 | mixture, whose layout differs then, once more b Q                                |
    | ... rope alone  | the turned queries and keys b (Q + K W)                                          |
    | MLP             | b times its width F, SwiGLU 4 times, GELU and squared ReLU 2 times               |
    | dropout         | two masks b D                                                                    |

    Attention keeps no T x T matrices of each head, but on a CPU: three of fp32 with dropout, and half of one, in fp32
    and again in b, where it is compiled in blocks. Elsewhere a document mask is kept as numbers, b T x T for all heads
    together, and on a card keys and values b 2 (Q - K W) for the heads that share them.

    Masks (TiDAR) are tokens behind the text; what they may see is kept as numbers too, but for FlexAttention on a card,
    which has no dropout.
    """
    masks = params.trained_masks
    time, queries, keys = params.context_length, params.n_heads * params.head_width, params.kv_heads * params.head_width
    product = DTYPES[precision].itemsize
    attention = product * (2 * queries + 2 * keys)
    if params.qk_norm:
        attention += (FP32 if precision == "fp32" else 2 * FP32) * (queries + keys) + product * (2 * queries + keys)
    elif params.position == "rope":
        attention += product * (queries + keys)
    mlp = product * MLP_WIDTHS[params.mlp] * params.ff_width
    dropout = 2 * product * params.d_model if params.dropout else 0
    squares, seen_by_masks = 0, masks * (time + masks)
    if device == "cpu" and params.dropout:
        squares = 3 * FP32 * params.n_heads * (time**2 + seen_by_masks)
    elif device == "cpu" and compiled and cut_into_blocks(time):
        scores = sum((end - start) * end for start, end in cut_into_blocks(time))
        squares = (FP32 + product) * params.n_heads * (scores + seen_by_masks)
    else:
        if params.document_mask:
            squares = product * time**2
            attention += 0 if device == "cpu" else 2 * product * (queries - keys)
        if device != "cuda" or params.dropout:
            squares += (3 * FP32 * params.n_heads if params.dropout else product) * seen_by_masks
    return (time + masks) * (2 * _norm_bytes(params, product) + attention + mlp + dropout) + squares


def _norm_bytes(params: ModelParams, product: int) -> int:
    """What a norm keeps of one token: its input, for RMSNorm the quotient before the gain, and its output."""
    return params.d_model * (FP32 * (2 if params.norm == "rmsnorm" else 1) + product)


def _logits_bytes(params: ModelParams, vocab_size: int, tokens: int) -> int:
    """Head and loss: scores, log-probabilities and the gradient in fp32, and the scores before a cap.

    In pieces (`WHOLE_LOGITS_BYTES`) a piece five times, and the gradients of the head's weight and input twice.
    """
    whole = FP32 * tokens * vocab_size
    if whole <= WHOLE_LOGITS_BYTES:
        return whole * (3 if params.logit_softcap is None else 4)
    return 5 * WHOLE_LOGITS_BYTES + 2 * FP32 * params.d_model * (vocab_size + tokens)


class HardwarePlan(NamedTuple):
    """Hardware of a training with its micro-batch, and the memory that one process needs at the peak of a step.

    `obstacle` says why a step does not fit into what is free; hardware and memory are then those of a single sequence.
    """

    hardware: Hardware
    memory: MemoryEstimate
    obstacle: str | None

    def require_fit(self) -> Hardware:
        """Return the hardware. Raises ParameterError with the obstacle, if there is one."""
        if self.obstacle is not None:
            raise ParameterError(self.obstacle)
        return self.hardware


def fit_to_memory(hardware: Hardware, params: TrainParams, model_params: ModelParams, vocab_size: int) -> HardwarePlan:
    """Choose a micro-batch that fits; one that was asked for is kept. Call it before the model is built.

    The choice follows from the memory that the machine has, not from what is free at the moment: how a batch is cut
    shows in the last digits, and a run that goes on after a kill must cut it as before.
    """
    estimate = functools.partial(estimate_memory, params=params, model_params=model_params, vocab_size=vocab_size)
    if not hardware.micro_batch_asked:
        limit = FILLED[hardware.device] * total_memory(hardware.device)
        size = choose_micro_batch(estimate, hardware, _usable(limit, hardware))
        hardware = replace(hardware, micro_batch_size=size)
    obstacle = explain_obstacle(estimate, hardware, available_memory(hardware.device))
    if obstacle is not None:
        hardware = replace(hardware, micro_batch_size=1)
    return HardwarePlan(hardware, estimate(hardware), obstacle)


def _usable(memory: float, hardware: Hardware) -> int:
    """What one process's tensors can fill of `memory`: GPUs belong to one process each, main memory is shared."""
    if hardware.device == "cuda":
        return int(memory)
    return int(memory * (1.0 if hardware.compile else HEAP_FILLED) * hardware.machines / hardware.processes)


def choose_micro_batch(estimate: Estimate, hardware: Hardware, memory: int) -> int:
    """Return the largest micro-batch, at most that of `hardware`, that fits into `memory` bytes; 1 if none does."""
    sizes = range(hardware.micro_batch_size, 1, -1)
    return next((size for size in sizes if estimate(replace(hardware, micro_batch_size=size)).total <= memory), 1)


def explain_obstacle(estimate: Estimate, hardware: Hardware, available: int) -> str | None:
    """Say why a step does not fit into `available` bytes, and the remedy that costs least; None if it fits."""
    needed, usable = estimate(hardware), _usable(available, hardware)
    if needed.total <= usable:
        return None
    return (
        f"hardware.micro_batch_size={hardware.micro_batch_size}: a training step needs {format_memory(needed)}, "
        f"but of {show_bytes(available)} that are free on device {hardware.device} a process can fill "
        f"{show_bytes(usable)}; {_suggest_fit(estimate, hardware, usable)}"
    )


def _suggest_fit(estimate: Estimate, hardware: Hardware, usable: int) -> str:
    """The first change, from the one that costs least, with which a step fits."""
    size = choose_micro_batch(estimate, hardware, usable)
    recomputed = replace(hardware, micro_batch_size=1, activation_checkpointing=True)
    ways = [
        (f"set hardware.micro_batch_size={size}", replace(hardware, micro_batch_size=size)),
        ("set hardware.micro_batch_size=1 and hardware.activation_checkpointing=true", recomputed),
    ]
    if hardware.processes > 1:
        sharded = replace(recomputed, sharding="full")
        ways.append(("set hardware.micro_batch_size=1, activation_checkpointing=true and sharding=full", sharded))
    fitting = (way for way, changed in ways if estimate(changed).total <= usable)
    return next(fitting, "free some, or make model.n_layers, model.d_model or model.context_length smaller")


def find_micro_batch(try_step: Callable[[int], None], start: int) -> int:
    """The first of `start`, its half, its quarter ... with which `try_step` does not run out of the card's memory.

    `try_step` does one forward and backward pass over so many sequences and may leave gradients behind. Raises
    ParameterError when a single sequence is too much.
    """
    for halvings in range(start.bit_length()):
        with suppress(torch.OutOfMemoryError):
            try_step(start >> halvings)
            return start >> halvings
        torch.cuda.empty_cache()  # the error's traceback, gone by now, has held the step's tensors
    raise ParameterError(
        "hardware.micro_batch_size=1: one sequence does not fit into the card's memory; set "
        "hardware.activation_checkpointing=true or make model.n_layers, model.d_model or model.context_length smaller"
    )


def format_memory(estimate: MemoryEstimate) -> str:
    """`1.3 GB (parameters 260 MB, gradients 260 MB, ...)`, for the log and for tables."""
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in asdict(estimate).items())
    return f"{show_bytes(estimate.total)} ({parts})"
