"""Writes programs of torch.export as ONNX files.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import json
from pathlib import Path

import onnx
import onnx_ir
import torch
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from torch import Tensor

from .export_program import METADATA

# The oldest version in which PyTorch's exporter writes its operators, so the one that most runtimes read.
OPSET = 18
LARGEST = 2**31 - 2**20  # bytes of weights that fit into one file, whose format ends at 2 GiB


def linear_attention(delta: Tensor, product: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """`arm_backbone.ops.program.token_loop` as the operator LinearAttention of onnxruntime 1.25.1 or later.

    Of its update rules "gated" is a Mamba-1 scan: each channel is a head with N keys and one value, whose decay is
    delta A (before the exponential), whose value is delta u, and which shares query C and key B with all other heads.
    """
    length, batch, directions, channels = delta.shape
    states, rows = A.shape[2], batch * directions
    decay, value, key, query = (  # (B K, L, .)
        x.permute(1, 2, 0, *range(3, x.ndim)).flatten(0, 1).flatten(2) for x in (delta.unsqueeze(4) * A, product, B, C)
    )
    y, state = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        (query, key, value, None, decay),
        dict(q_num_heads=1, kv_num_heads=channels, update_rule="gated", scale=1.0),
        dtypes=(delta.dtype, delta.dtype),
        shapes=((rows, length, channels), (rows, channels, states, 1)),
        version=1,
    )
    y = y.unflatten(0, (batch, directions)).permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)
    return y, state.squeeze(3).unflatten(0, (batch, directions))


def write_onnx(
    program: torch.export.ExportedProgram, file: Path, outputs: list[str], axes: dict[int, str], metadata: dict
) -> list[Path]:
    """Write a program with one input, `images`, as an ONNX file.

    Weights of more than `LARGEST` bytes go into a second file beside it, named FILE.data.

    Args:
        outputs: names of the outputs.
        axes: names of the input's axes of any size.
        metadata: goes into the file's `metadata_props` as JSON, under the key `METADATA`.

    Returns:
        the files that were written.
    """
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes=dict(images=axes),
        opset_version=OPSET,
        verbose=False,
        optimize=False,
    )
    model = _simplified(made.model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter's stack traces, with paths of this machine
    model.metadata_props[METADATA] = json.dumps(metadata)
    model.producer_name, model.producer_version = "arm", torch.__version__
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = f"{file.name}.data" if size > LARGEST else None
    onnx_ir.save(model, file, external_data=beside)
    onnx.checker.check_model(str(file))
    return [file, file.with_name(beside)] if beside else [file]


def _simplified(model: onnx_ir.Model) -> onnx_ir.Model:
    """Fold constants and remove what is not used; the exporter's own optimizer takes as long as all the rest."""
    passes.InlinePass()(model)
    fold_constants(model)
    steps = (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )
    return Sequential(*steps)(model).model
