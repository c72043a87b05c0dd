"""Scans by the compiled CPU kernels of other packages, which the benchmark compares with.

Arguments and results are those of `arm_backbone.ops.cross_scan`, in float32, without gradients.

Legend: B batch, K scan directions, L tokens, D channels, N state size.
"""

import ctypes
import functools
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import one_line
from .alternatives import in_scan_order, in_token_order, is_single

FLOAT, INT = 0, 26  # ggml's numbers of these types


@functools.cache
def _linear_attention(channels: int, threads: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """onnxruntime's LinearAttention with one head per channel, and one query (C) and key (B) for all of them."""
    from onnx import TensorProto, helper
    from onnxruntime import InferenceSession, SessionOptions

    node = helper.make_node(
        "LinearAttention",
        ["query", "key", "value", "", "decay"],
        ["output", "state"],
        domain="com.microsoft",
        update_rule="gated",
        q_num_heads=1,
        kv_num_heads=channels,
        scale=1.0,
    )
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 3) for n in (*node.input, "output") if n]
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "scan", values[:-1], values[-1:])
    options = SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
        fed = dict(query=query, key=key, value=value, decay=decay)
        return torch.from_numpy(session.run(["output"], {name: x.numpy() for name, x in fed.items()})[0])

    return run


def onnxruntime_scan(u, delta, A, B, C, D, delta_bias, orders) -> Tensor:
    """The recurrence by onnxruntime's contributed operator LinearAttention, everything before and after by PyTorch."""
    attention = _linear_attention(u.shape[3], torch.get_num_threads())
    u_s, delta_s, B_s, C_s = in_scan_order(u, delta, B, C, delta_bias, orders)
    decay = (delta_s.unsqueeze(4) * A.unsqueeze(1)).flatten(3)
    y = attention(*(x.flatten(0, 1) for x in (C_s, B_s, delta_s * u_s, decay))).view_as(u_s)
    return in_token_order(y + D.unsqueeze(1) * u_s, orders)


@functools.cache
def _ggml() -> ctypes.CDLL:
    """ggml's CPU library from the package libggml-python, with the types of the functions that are called.

    Raises:
        ImportError: if the package, or its library, is not installed.
    """
    import libggml

    root = Path(libggml.__file__).parent
    libraries = [next(root.glob(f"lib*/libggml-{part}.so"), None) for part in ("base", "cpu")]
    if None in libraries:
        raise ImportError(f"{root} has no libggml-base.so and libggml-cpu.so")
    _, library = (ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in libraries)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    functions = dict(
        ggml_init=([_GgmlParameters], pointer),
        ggml_free=([pointer], None),
        ggml_new_tensor_4d=([pointer, ctypes.c_int] + [number] * 4, pointer),
        ggml_get_data=([pointer], pointer),
        ggml_ssm_scan=([pointer] * 8 + [number], pointer),
        ggml_new_graph=([pointer], pointer),
        ggml_build_forward_expand=([pointer] * 2, None),
        ggml_backend_cpu_init=([], pointer),
        ggml_backend_cpu_set_n_threads=([pointer, ctypes.c_int], None),
        ggml_backend_graph_compute=([pointer] * 2, ctypes.c_int),
    )
    for name, (arguments, result) in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


class _GgmlParameters(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _GgmlScan:
    """ggml's `ssm_scan` for one size: sequences (B, L, D) with one A (D, N)."""

    def __init__(self, batch: int, tokens: int, channels: int, states: int, threads: int) -> None:
        self.ggml = ggml = _ggml()
        inputs = dict(  # sizes from the fastest one on
            state=(states, 1, channels, batch),
            x=(1, channels, tokens, batch),
            delta=(channels, tokens, batch, 1),
            A=(states, channels, 1, 1),
            B=(states, 1, tokens, batch),
            C=(states, 1, tokens, batch),
        )
        self.shape = batch, tokens, channels
        numbers = 2 * sum(a * b * c * d for a, b, c, d in inputs.values())  # more than the inputs and the result
        self.context = ggml.ggml_init(_GgmlParameters(4 * numbers + 2**22, None, False))
        weakref.finalize(self, ggml.ggml_free, self.context)
        tensors = {name: ggml.ggml_new_tensor_4d(self.context, FLOAT, *size) for name, size in inputs.items()}
        sequences = ggml.ggml_new_tensor_4d(self.context, INT, batch, 1, 1, 1)
        self.out = ggml.ggml_ssm_scan(self.context, *tensors.values(), sequences, 1)
        self.graph = ggml.ggml_new_graph(self.context)
        ggml.ggml_build_forward_expand(self.graph, self.out)
        self.backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self.tensors = {name: ggml.ggml_get_data(tensor) for name, tensor in tensors.items()}
        indices = (ctypes.c_int32 * batch)(*range(batch))
        ctypes.memmove(ggml.ggml_get_data(sequences), indices, ctypes.sizeof(indices))
        ctypes.memset(self.tensors["state"], 0, 4 * states * channels * batch)

    def __call__(self, **inputs: Tensor) -> Tensor:
        """x and delta (B, L, D), A (D, N), B and C (B, L, N) -> (B, L, D), without the skip connection."""
        for name, x in inputs.items():
            x = x.contiguous()
            ctypes.memmove(self.tensors[name], x.data_ptr(), 4 * x.numel())
        if self.ggml.ggml_backend_graph_compute(self.backend, self.graph):
            raise RuntimeError("ggml could not compute the scan")
        y = torch.empty(self.shape)
        ctypes.memmove(y.data_ptr(), self.ggml.ggml_get_data(self.out), 4 * y.numel())
        return y


_ggml_scan = functools.cache(_GgmlScan)


def ggml_scan(u, delta, A, B, C, D, delta_bias, orders) -> Tensor:
    """Each direction by ggml's `ssm_scan`, which applies softplus; order, bias and skip connection by PyTorch."""
    y = torch.empty(u.shape)
    for k, order in enumerate([slice(None)] if is_single(orders) else orders):
        inputs = dict(x=u[:, k, order], delta=delta[:, k, order] + delta_bias[k], B=B[:, k, order], C=C[:, k, order])
        scan = _ggml_scan(*inputs["x"].shape, A.shape[2], torch.get_num_threads())
        y[:, k] = scan(**inputs, A=A[k]) + D[k] * inputs["x"]
    return in_token_order(y, orders)


def missing(name: str) -> str | None:
    """Why "onnxruntime" or "ggml" cannot run, or None."""
    try:
        if name == "onnxruntime":
            _linear_attention(1, 1)
        else:
            _ggml()
    except ImportError as error:
        package = dict(onnxruntime="onnx onnxruntime", ggml="libggml-python")[name]
        return f"{one_line(error)} (pip install {package})"
    except Exception as error:  # onnxruntime raises types of its own if it lacks the operator
        return one_line(error)
    return None
