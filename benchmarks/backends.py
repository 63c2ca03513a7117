"""`python -m benchmarks.backends`: what the linear layers cost on each backend that could compute them.

The comparison behind engine/precision.py: the feed-forward half of the encoder (512 to 2,048 with ReLU and
back), eight times with weights of their own, so that those do not stay in the processor's cache. Runs in the
peers' environment, which has torchao and ONNX Runtime; what is missing or fails is a row that says so.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sensevoiced.engine.int8 import Quantised, QuantisedLinear
from sensevoiced.engine.linear import CastLinear, Linear, PackedLinear
from sensevoiced.engine.native import NativeLinear

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, HIDDEN, LAYERS = 512, 2_048, 8
ROWS = (17, 83, 250, 1_000)
"""1, 5, 15 and 60 s."""
ROUNDS = 9
Run = "Callable[[torch.Tensor], torch.Tensor]"


def source(inputs: int, outputs: int, *, relu: bool) -> Linear:
    """Make a layer of random weights."""
    layer = Linear(inputs, outputs, relu=relu)
    layer.weight.copy_(torch.randn(outputs, inputs) / inputs**0.5)
    layer.bias.copy_(torch.randn(outputs) / 10)
    return layer


def ours(make: Callable[[Linear], Any]) -> Callable[[list[Linear]], Run]:
    """Run layers of our own on the whole of a batch, as one utterance."""

    def prepare(layers: list[Linear]) -> Run:
        made = [make(layer) for layer in layers]

        def run(rows: torch.Tensor) -> torch.Tensor:
            for layer in made:
                rows = layer(rows, [(0, len(rows))])
            return rows

        return run

    return prepare


def sequence(layers: list[Linear]) -> nn.Sequential:
    """The same layers as torch's own modules."""
    modules: list[nn.Module] = []
    for layer in layers:
        outputs, inputs = layer.weight.shape
        plain = nn.Linear(inputs, outputs)
        plain.weight.data, plain.bias.data = layer.weight.clone(), layer.bias.clone()
        modules += [plain, nn.ReLU()] if layer.relu else [plain]
    return nn.Sequential(*modules).requires_grad_(requires_grad=False).eval()


def mkl_packed(layers: list[Linear]) -> Run:
    """MKL on weights packed for it, which inductor uses; another packing for each number of rows."""
    mkl = torch.ops.mkl
    packed: dict[tuple[int, int], torch.Tensor] = {}

    def run(rows: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(layers):
            if (i, len(rows)) not in packed:
                packed[i, len(rows)] = mkl._mkl_reorder_linear_weight(layer.weight, len(rows))  # noqa: SLF001
            packing = packed[i, len(rows)]
            rows = mkl._mkl_linear(rows, packing, layer.weight, layer.bias, len(rows))  # noqa: SLF001
            rows = rows.relu_() if layer.relu else rows
        return rows

    return run


def torch_quantised(engine: str) -> Callable[[list[Linear]], Run]:
    """torch.ao's dynamically quantised Linear, which torch has announced to remove."""

    def prepare(layers: list[Linear]) -> Run:
        torch.backends.quantized.engine = engine
        kinds = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        return torch.ao.quantization.quantize_dynamic(sequence(layers), kinds)

    return prepare


def torchao(layers: list[Linear]) -> Run:
    """Weights and inputs in int8 by torchao, eager."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # noqa: PLC0415

    model = sequence(layers)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def inductor(dtype: torch.dtype) -> Callable[[list[Linear]], Run]:
    """torch.compile with frozen weights; compiling takes tens of seconds and a C++ compiler at run time."""

    def prepare(layers: list[Linear]) -> Run:
        import torch._inductor.config as settings  # noqa: PLC0415 - imports the compiler

        settings.freezing = True
        compiled = torch.compile(sequence(layers).to(dtype), dynamic=False)
        return lambda rows: compiled(rows.to(dtype))

    return prepare


def onnx_runtime(*, int8: bool) -> Callable[[list[Linear]], Run]:
    """ONNX Runtime, in 8 bits by its own dynamic quantisation."""

    def prepare(layers: list[Linear]) -> Run:
        import onnx  # noqa: PLC0415 - only this row needs it
        import onnxruntime  # noqa: PLC0415
        from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

        nodes, held, last = [], [], "x"
        for i, layer in enumerate(layers):
            held += [
                numpy_helper.from_array(layer.weight.t().contiguous().numpy(), f"w{i}"),
                numpy_helper.from_array(layer.bias.numpy(), f"b{i}"),
            ]
            nodes += [
                helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
                helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            ]
            last = f"a{i}"
            if layer.relu:
                nodes.append(helper.make_node("Relu", [last], [f"r{i}"]))
                last = f"r{i}"
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", WIDTH]) for n in ("x", last)]
        graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "layers.onnx"
            onnx.save(model, file)
            if int8:
                quantised = file.with_name("int8.onnx")
                quantize_dynamic(file, quantised, weight_type=QuantType.QUInt8)
                file = quantised
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda rows: torch.from_numpy(session.run(None, {"x": rows.numpy()})[0])

    return prepare


BACKENDS: dict[str, Callable[[list[Linear]], Any]] = {
    "float32: torch (MKL)": ours(lambda layer: layer),
    "float32: MKL, prepacked": mkl_packed,
    "float32: compiled (taken, AVX-512)": ours(lambda layer: NativeLinear(layer, "float32", None)),
    "float32: oneDNN, prepacked (taken elsewhere)": ours(lambda layer: PackedLinear(layer, torch.float32)),
    "float32: inductor, frozen": inductor(torch.float32),
    "float32: ONNX Runtime": onnx_runtime(int8=False),
    "bfloat16: torch": ours(lambda layer: CastLinear(layer, torch.bfloat16)),
    "bfloat16: oneDNN, prepacked (taken elsewhere)": ours(lambda layer: PackedLinear(layer, torch.bfloat16)),
    "bfloat16: inductor, frozen": inductor(torch.bfloat16),
    "int8: compiled (taken, AVX-512)": ours(lambda layer: NativeLinear(layer, "int8", None)),
    "int8: oneDNN (taken elsewhere)": ours(lambda layer: QuantisedLinear(layer, Quantised.of(layer.weight))),
    "int8: torch's quantised Linear, oneDNN": torch_quantised("onednn"),
    "int8: torch's quantised Linear, fbgemm": torch_quantised("fbgemm"),
    "int8: torchao": torchao,
    "int8: ONNX Runtime": onnx_runtime(int8=True),
}


@torch.inference_mode()
def main() -> None:
    """Prepare each backend, run all in turns, print GFLOP/s at the median."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    shapes = [(WIDTH, HIDDEN), (HIDDEN, WIDTH)] * LAYERS
    layers = [source(*shape, relu=shape[0] == WIDTH) for shape in shapes]
    batches = {rows: torch.randn(rows, WIDTH) for rows in ROWS}
    ready: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, prepare in BACKENDS.items():
        print(name, file=sys.stderr)
        try:
            run = prepare(layers)
            for rows in batches.values():
                run(rows)
                run(rows)
            ready[name] = run
        except Exception as error:  # noqa: BLE001 - whatever a backend fails with is its row
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]:.80}"
    took: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in ready.items():
            for count, rows in batches.items():
                began = time.perf_counter()
                run(rows)
                took.setdefault((name, count), []).append(time.perf_counter() - began)
    print(f"| GFLOP/s, {torch.get_num_threads()} threads | {' | '.join(f'{rows} rows' for rows in ROWS)} |")
    print(f"| --- |{' ---: |' * len(ROWS)}")
    for name in BACKENDS:
        cells = [
            f"{4 * WIDTH * HIDDEN * LAYERS * rows / statistics.median(took[name, rows]) / 1e9:.0f}"
            if name in ready
            else "-"
            for rows in ROWS
        ]
        print(f"| {name}{': ' + failed[name] if name in failed else ''} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
