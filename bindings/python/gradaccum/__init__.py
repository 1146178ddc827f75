"""gradaccum: gradient accumulation whose result does not depend on the split, to the last bit.

One update from micro-batches of any size:

    import gradaccum as ga

    optimizer = ga.AdamW([weight, bias], lr=1e-3)
    accumulator = ga.Accumulator(optimizer, max_grad_norm=1.0)
    for x, y in micro_batches:
        loss = ga.cross_entropy(ga.linear(ga.tensor(x), weight, bias), ga.tensor(y))
        accumulator.accumulate(loss, weight=len(y))
    report = accumulator.step()
"""

from . import schedules
from .accumulator import Accumulator
from .averages import WeightAverage
from .checkpointing import checkpoint
from .custom import CustomOptimizer, Update
from .errors import (
    GADTypeError,
    GAError,
    GAIndexError,
    GAInternalError,
    GAInvalidArgumentError,
    GALibraryError,
    GANonFiniteError,
    GAOutlierError,
    GAOutOfMemoryError,
    GAOverflowError,
    GAShapeError,
    GAStateError,
    GAUnsupportedError,
)
from .loss_scaler import LossScaler
from .micro_batch import MicroBatch
from .ops import (
    add,
    cast,
    causal_attention,
    cross_entropy,
    divide,
    embedding,
    gelu,
    gradients,
    layer_norm,
    linear,
    linear_cross_entropy,
    matmul,
    mean,
    mse,
    multiply,
    relu,
    reshape,
    slice,
    softmax,
    subtract,
    sum,
    transpose,
)
from .optim import (
    LAMB,
    LARS,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    AdamW8bit,
    Lion,
    Muon,
    NAdam,
    Optimizer,
    ParameterGroup,
    RAdam,
)
from .report import Decision, Outcome, Report
from .runtime import (
    MemoryUsage,
    compute_dtype,
    get_compute_dtype,
    get_num_threads,
    instruction_set,
    memory_reset_peak,
    memory_trim,
    memory_usage,
    set_compute_dtype,
    set_num_threads,
    version,
)
from .scaling import BatchScaling
from .splitting import BatchPart, split, split_ranges
from .tensor import (
    DType,
    Scope,
    Tensor,
    bfloat16,
    float16,
    float32,
    from_dlpack,
    from_numpy,
    int32,
    int64,
    no_grad,
    tensor,
    zeros,
)

__version__ = "0.1.0"

__all__ = [
    "Accumulator",
    "Adafactor",
    "Adam",
    "AdamW",
    "AdamW8bit",
    "BatchPart",
    "BatchScaling",
    "CustomOptimizer",
    "DType",
    "Decision",
    "GADTypeError",
    "GAError",
    "GAIndexError",
    "GAInternalError",
    "GAInvalidArgumentError",
    "GALibraryError",
    "GANonFiniteError",
    "GAOutOfMemoryError",
    "GAOutlierError",
    "GAOverflowError",
    "GAShapeError",
    "GAStateError",
    "GAUnsupportedError",
    "LAMB",
    "LARS",
    "Lion",
    "LossScaler",
    "MemoryUsage",
    "MicroBatch",
    "Muon",
    "NAdam",
    "Optimizer",
    "Outcome",
    "ParameterGroup",
    "RAdam",
    "Report",
    "SGD",
    "Scope",
    "Tensor",
    "Update",
    "WeightAverage",
    "__version__",
    "add",
    "bfloat16",
    "cast",
    "causal_attention",
    "checkpoint",
    "compute_dtype",
    "cross_entropy",
    "divide",
    "embedding",
    "float16",
    "float32",
    "from_dlpack",
    "from_numpy",
    "gelu",
    "get_compute_dtype",
    "get_num_threads",
    "gradients",
    "instruction_set",
    "int32",
    "int64",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "matmul",
    "mean",
    "memory_reset_peak",
    "memory_trim",
    "memory_usage",
    "mse",
    "multiply",
    "no_grad",
    "relu",
    "reshape",
    "schedules",
    "set_compute_dtype",
    "set_num_threads",
    "slice",
    "softmax",
    "split",
    "split_ranges",
    "subtract",
    "sum",
    "tensor",
    "transpose",
    "version",
    "zeros",
]
