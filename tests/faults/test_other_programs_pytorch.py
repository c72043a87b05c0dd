"""PyTorch's own tools around a model: each gives the model's result, or is refused with one line."""

import copy
import io
import multiprocessing
import pickle
import threading
from contextlib import contextmanager

import pytest
import timm.utils
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from arm_backbone.arm import ARM
from arm_backbone.classifier import ARMClassifier
from arm_backbone.ops.dispatch import resolve_backend, scan_backend
from arm_backbone.ops.library import is_plain
from arm_backbone.scan_order import grid_orders
from arm_pretrain import ARMPretrainer
from tests.helpers.scans import assert_close, scan_inputs

ARCH = dict(embed_dims=32, num_layers=2)


def small(seed: int = 0, **arguments) -> ARMClassifier:
    torch.manual_seed(seed)
    return ARMClassifier(ARCH, 32, **dict(num_classes=5) | arguments).eval()


def images(batch: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------ copies and files


def whole_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def emptied_and_loaded(model: nn.Module) -> nn.Module:
    with torch.device("meta"):
        empty = small(seed=1)
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    return empty


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save of the module": whole_file,
    "meta and assign": emptied_and_loaded,
    "share_memory": lambda model: copy.deepcopy(model).share_memory(),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "timm's average": lambda model: timm.utils.ModelEmaV3(model).module,
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("make", COPIES)
def test_copies_compute_the_same_and_train(make):
    model, x = small(), images()
    expected = model(x)  # a copy is made of a model that was used
    copied = COPIES[make](model)
    assert torch.equal(copied(x), expected)
    copied.requires_grad_().train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())


def test_replicas_of_data_parallel_hold_plain_tensors():
    """On several GPUs DataParallel calls replicas in threads; their weights are no parameters."""
    model, x = small(), images()
    replica = replicate(model)
    assert not list(replica.parameters())
    with scan_backend("torch"):
        result = {}
        thread = threading.Thread(target=lambda: result.update(output=replica(x)))
        thread.start()
        thread.join()
    assert_close(result["output"], model(x), 1e-4)
    result["output"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def replicate(model: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate makes of a module, on the CPU."""
    replica = model._replicate_for_data_parallel()
    for name, child in model.named_children():
        setattr(replica, name, replicate(child))
    for name, parameter in model._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.clone())
    return replica


# ------------------------------------------------------------------------------------ types and layouts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_converted_model_computes_in_its_type(dtype):
    model, x = small(), images()
    expected = model(x)
    converted = copy.deepcopy(model).to(dtype)
    output = converted(x.to(dtype))
    assert output.dtype == dtype
    assert_close(output.double(), expected.double(), 1e-5 if dtype == torch.float64 else 0.1)
    output.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in converted.parameters())
    with pytest.raises(RuntimeError):  # as every PyTorch model, it does not convert its input
        converted(x)


def views(x: Tensor) -> dict[str, Tensor]:
    """The same images in other memory layouts."""
    padded = torch.nn.functional.pad(x, (3, 3, 3, 3))
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "a crop": padded[:, :, 3:-3, 3:-3],
        "expanded": x[:1].expand(2, -1, -1, -1),
        "turned": x.transpose(2, 3).contiguous().transpose(2, 3),
        "flipped twice": x.flip(3).flip(3),
        "inference": torch.inference_mode()(lambda: x.clone())(),
        "negative bit": torch.complex(-x, -x).conj().imag,
    }


@pytest.mark.parametrize("kind", ["classifier", "backbone", "model in channels_last"])
@torch.no_grad()
def test_layouts_of_the_images(kind):
    model = ARM(ARCH, 32, out_indices=(0, 1)).eval() if kind == "backbone" else small()
    if kind == "model in channels_last":
        model = model.to(memory_format=torch.channels_last)
    x = images()
    for view in views(x).values():
        same = view.clone(memory_format=torch.contiguous_format)
        for got, want in zip(model(view), model(same), strict=True):
            assert_close(got, want, 1e-5)


def test_batches_of_no_and_of_many_images():
    model = small()
    assert model(images(0)).shape == (0, 5)
    many = images(33)
    assert_close(model(many), torch.cat([model(x[None]) for x in many]), 1e-5)


# ------------------------------------------------------------------------------------ modes of autograd


def gradients(model: nn.Module) -> list[Tensor]:
    return torch.autograd.grad(model(images()).square().sum(), list(model.parameters()))


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "detect_anomaly": torch.autograd.detect_anomaly,
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "saved tensors are copied": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
    "deterministic algorithms": deterministic,
    "a mode of functions": lambda: torch.device("cpu"),
    "FlopCounterMode": lambda: FlopCounterMode(display=False),
    "profiler": torch.profiler.profile,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES)
def test_gradients_under_a_mode(mode):
    model = small()
    expected = gradients(model)
    with MODES[mode]():
        found = gradients(model)
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, 1e-5)


def test_a_graph_is_run_backward_twice():
    model = small()
    loss = model(images()).square().sum()
    one = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    two = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_training_after_inference_mode():
    model, x = small(), images()
    with torch.inference_mode():
        expected = model(x)
    assert torch.equal(model(x), expected)
    assert all(grad.isfinite().all() for grad in gradients(model))


def test_a_partly_frozen_model_has_the_same_gradients():
    model = small()
    expected = dict(zip((name for name, _ in model.named_parameters()), gradients(model), strict=True))
    trained = ("blocks.0.mixer.A_log", "blocks.1.mlp.w3.bias", "blocks.0.norm2.weight", "pos_embed")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        if name in trained:
            assert_close(parameter.grad, expected[name], 1e-5)


def test_default_dtype_of_the_process():
    torch.set_default_dtype(torch.float64)
    try:
        model, x = small(), images()
        assert model(x).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(model(x), model.float()(x.float()).double(), 1e-4)


# ------------------------------------------------------------------------------------ torch.func


def test_an_ensemble_under_vmap():
    models = [small(seed) for seed in range(3)]
    weights, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = images()
    outputs = vmap(lambda w, b: functional_call(base, (w, b), (x,)))(weights, buffers)
    for output, model in zip(outputs, models, strict=True):
        assert_close(output, model(x), 1e-5)


def test_jacobian_of_a_classifier_in_plain_pytorch():
    model, x = small().double(), images(1).double()
    with scan_backend("torch"):
        jacobian = jacrev(model)(x)
        leaf = x.clone().requires_grad_()
        (row,) = torch.autograd.grad(model(leaf)[0, 2], leaf)
    assert_close(jacobian[0, 2], row, 1e-9)


# ------------------------------------------------------------------------------------ programs made of a model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls_token", ["middle", *(pytest.param(p, marks=pytest.mark.slow) for p in (None, "tail"))])
@pytest.mark.parametrize("example", [16, 32, pytest.param(64, marks=pytest.mark.slow)])
@torch.no_grad()
def test_traced_model(cls_token, example):
    """A program of torch.jit.trace is right for other sizes too; with other orders than tokens it crashed."""
    model = small(cls_token=cls_token)
    traced = torch.jit.trace(model, images(2, example, example))
    for height, width in ((example, example), (16, 16), (32, 32), (48, 64), (16, 64), (64, 16)):
        x = images(3, height, width)
        assert_close(traced(x), model(x), 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_backbone_and_training():
    backbone, model, x = ARM(ARCH, 32, out_indices=(0, 1)).eval(), small(), images(2, 48, 64)
    with torch.no_grad():
        traced = torch.jit.trace(backbone, images(1, 33, 50))
        for got, want in zip(traced(x), backbone(x), strict=True):
            assert_close(got, want, 1e-5)
    traced = torch.jit.trace(model, images(1))
    found, wanted = (torch.autograd.grad(m(x).square().sum(), list(model.parameters())) for m in (traced, model))
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want, 1e-4)


@pytest.mark.parametrize("build", [small, lambda: ARM(ARCH, 32, out_indices=(0, 1))])
def test_one_image_without_a_batch_is_named(build):
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\), not \(3, 32, 32\); for one image give"):
        build()(images()[0])


@pytest.mark.parametrize("name", ["x", "weight", "bias", "orders"])
def test_registered_operators_check_shapes_themselves(name):
    """Traced and exported programs call them, with what was computed from other images than the example."""
    x, weight, bias = torch.randn(2, 9, 6), torch.randn(4, 6, 4), torch.randn(4, 6)
    inputs = dict(x=x, weight=weight, bias=bias, orders=grid_orders(3, 3).tensor)
    torch.ops.arm.cross_conv(*inputs.values())
    inputs[name] = inputs[name][..., :2].contiguous() if name != "weight" else weight[:2]
    with pytest.raises(ValueError, match="shape"):
        torch.ops.arm.cross_conv(*inputs.values())


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias", "orders"])
def test_registered_scan_checks_shapes_itself(name):
    inputs = {key: value.detach().float() for key, value in scan_inputs(grid=(3, 3)).items()}
    inputs["orders"] = inputs["orders"].long()
    options = (True, "mean", resolve_backend(torch.device("cpu"), torch.float32), False)
    torch.ops.arm.cross_scan(*inputs.values(), *options)
    inputs[name] = inputs[name][..., :1].contiguous()
    with pytest.raises(ValueError, match="shape"):
        torch.ops.arm.cross_scan(*inputs.values(), *options)


@pytest.mark.parametrize("build", [small, lambda: ARM(ARCH, 32, out_indices=(0, 1)), lambda: nn.Sequential(small())])
def test_row_53_symbolic_tracing_is_refused_with_a_way(build):
    with pytest.raises(NotImplementedError, match="torch.fx cannot trace the scan.*; use torch.export.export or"):
        torch.fx.symbolic_trace(build())


def test_row_53_torchvisions_feature_extractor_is_refused_with_a_way():
    with pytest.raises(NotImplementedError, match="torch.fx cannot trace the scan"):
        create_feature_extractor(small(), ["blocks.0"])


def test_a_model_as_a_leaf_is_traced():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, ARMClassifier) or super().is_leaf_module(module, name)

    model = nn.Sequential(small(), nn.ReLU())
    graph = torch.fx.GraphModule(model, Tracer().trace(model))
    assert torch.equal(graph(images()), model(images()))


@pytest.mark.parametrize(
    "build",
    [
        small,
        lambda: ARM(ARCH, 32, out_indices=(0, 1)),
        lambda: nn.Sequential(small()),
        lambda: ARMPretrainer(arch=ARCH, img_size=96, cluster_side=2, decoder_dim=64),
        lambda: timm.create_model("arm_tiny_patch16_224", arch=ARCH, scriptable=True),
    ],
)
def test_row_53_scripting_is_refused_with_a_way(build):
    with pytest.raises(NotImplementedError, match="^TorchScript cannot compile the scan; use torch.export.export"):
        torch.jit.script(build())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model(backend):
    model, x = small(), images()
    compiled = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
    assert_close(compiled(x), model(x), 1e-5)
    compiled(x).square().sum().backward()
    model(x).square().sum().backward()
    for got, want in zip(compiled.parameters(), model.parameters(), strict=True):
        assert_close(got.grad, want.grad, 1e-4)


def test_layers_compiled_in_place_are_called():
    model, x = small(), images()
    expected = model(x)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.LayerNorm)]
    for layer in layers:
        assert is_plain(layer, type(layer))
        layer.compile(backend="eager")
        assert not is_plain(layer, type(layer))
    assert_close(model(x), expected, 1e-5)


# ------------------------------------------------------------------------------------ threads and processes


def test_threads_choose_their_own_back_end():
    """Two blocks in two threads overlap: each keeps its own, and none stays after both have ended."""
    cpu, seen = torch.device("cpu"), {}
    entered, ended = threading.Barrier(3), threading.Barrier(3)

    def work(name: str) -> None:
        with scan_backend(name):
            entered.wait(10)
            seen[name] = resolve_backend(cpu, torch.float32)
            ended.wait(10)

    before = resolve_backend(cpu, torch.float32)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("torch", "reference")]
    for thread in threads:
        thread.start()
    entered.wait(10)
    with scan_backend("auto"):
        assert resolve_backend(cpu, torch.float32) == before
    ended.wait(10)
    for thread in threads:
        thread.join()
    assert seen == dict(torch="torch", reference="reference")
    assert resolve_backend(cpu, torch.float32) == before


def test_blocks_that_end_in_another_order_leave_nothing():
    cpu = torch.device("cpu")
    before = resolve_backend(cpu, torch.float32)
    first, second = scan_backend("torch"), scan_backend("reference")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert resolve_backend(cpu, torch.float32) == "reference"
    second.__exit__(None, None, None)
    assert resolve_backend(cpu, torch.float32) == before


def test_models_with_different_back_ends_train_together():
    models, x = [small(), small()], images()
    for _ in range(2):
        with scan_backend("torch"):
            models[0](x).square().sum().backward()
        models[1](x).square().sum().backward()
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert_close(one.grad, two.grad, 1e-3)


def test_a_back_end_chosen_inside_a_compiled_function_is_used():
    """It was ignored without a word."""
    seen = []

    def run(x: Tensor) -> Tensor:
        with scan_backend("reference"):
            seen.append(resolve_backend(x.device, x.dtype))
            return x + 1

    with pytest.raises(Exception, match="put the block around its call"):
        torch.compile(run, backend="eager", fullgraph=True)(torch.ones(2))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(run, backend="eager")(torch.ones(2)), torch.full((2,), 2.0))
    assert set(seen) == {"reference"}


def test_threads_share_a_model():
    model, results = small(), [None] * 4
    x = images(4)

    def work(i: int) -> None:
        with torch.set_grad_enabled(i % 2 == 0):
            results[i] = model(x[i : i + 1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_close(torch.cat([result.detach() for result in results]), model(x), 1e-5)


def test_a_forked_process_uses_the_model():
    model, x = small(), images()
    expected = model(x)  # kernels are loaded, threads were started
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(model(x).detach().numpy()))
    child.start()
    try:
        assert receiver.poll(60)
        assert_close(torch.from_numpy(receiver.recv()), expected, 1e-6)
    finally:
        child.kill()
        child.join()
