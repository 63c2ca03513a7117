"""Writes what sherpa-onnx reads of a SenseVoiceSmall checkpoint: `export_sherpa.py MODEL_FOLDER OUT_FOLDER`.

Runs in the peers' environment, and leaves model.onnx (float32), model.int8.onnx and tokens.txt. Inputs,
outputs, operator set, metadata and quantisation are those of sherpa-onnx's scripts/sense-voice, so that its
figures are those of the files that its project publishes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch
from funasr import AutoModel
from onnxruntime.quantization import QuantType, quantize_dynamic

OPSET = 13
BATCH, TIME = {0: "N"}, {0: "N", 1: "T"}


class Recognizer(torch.nn.Module):
    """FunASR's encoder and CTC head between the tensors that sherpa-onnx passes."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Wrap FunASR's SenseVoiceSmall."""
        super().__init__()
        self._model = model

    def forward(
        self, x: torch.Tensor, x_length: torch.Tensor, language: torch.Tensor, text_norm: torch.Tensor
    ) -> torch.Tensor:
        """Map features (N, T, 560) and rows of the query table (N,) to logits (N, 4 + T, vocabulary)."""
        model = self._model
        event_emotion = model.embed(torch.tensor([[1, 2]])).repeat(x.size(0), 1, 1)
        queries = (model.embed(language)[:, None], event_emotion, model.embed(text_norm)[:, None])
        rows, _ = model.encoder(torch.cat((*queries, x), dim=1), x_length + 4)
        return model.ctc.ctc_lo(rows)


def metadata(auto: AutoModel) -> dict[str, object]:
    """What sherpa-onnx reads beside the graph; `version` 2 stands for QUInt8 weights."""
    model, conf = auto.model, auto.kwargs
    shift, scale = (
        ",".join(line.split()[3:-1])
        for line in Path(conf["frontend_conf"]["cmvn_file"]).read_text().splitlines()
        if line.startswith("<LearnRateCoef>")
    )
    return {
        "model_type": "sense_voice_ctc",
        "version": "2",
        "vocab_size": conf["tokenizer"].sp.vocab_size(),
        "lfr_window_size": conf["frontend_conf"]["lfr_m"],
        "lfr_window_shift": conf["frontend_conf"]["lfr_n"],
        "normalize_samples": 0,
        "neg_mean": shift,
        "inv_stddev": scale,
        **{f"lang_{name}": row for name, row in model.lid_dict.items()},
        "with_itn": model.textnorm_dict["withitn"],
        "without_itn": model.textnorm_dict["woitn"],
    }


@torch.no_grad()
def main() -> None:
    """Export, quantise, and write the token table."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    auto = AutoModel(model=str(source), device="cpu", disable_update=True)
    lengths, languages, text_norms = (
        torch.tensor(values, dtype=torch.int32) for values in ((80, 100), (0, 3), (14, 15))
    )
    features = torch.randn(2, 100, auto.kwargs["input_size"])
    torch.onnx.export(
        Recognizer(auto.model).eval(),
        (features, lengths, languages, text_norms),
        str(out / "model.onnx"),
        opset_version=OPSET,
        dynamo=False,
        input_names=["x", "x_length", "language", "text_norm"],
        output_names=["logits"],
        dynamic_axes={
            "x": TIME, "x_length": BATCH, "language": BATCH, "text_norm": BATCH, "logits": TIME,
        },
    )  # fmt: skip
    graph = onnx.load(out / "model.onnx")
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in metadata(auto).items()})
    onnx.save(graph, out / "model.onnx")
    quantize_dynamic(
        out / "model.onnx",
        out / "model.int8.onnx",
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QUInt8,
    )
    pieces = auto.kwargs["tokenizer"].sp
    table = (f"{pieces.id_to_piece(i)} {i}\n" for i in range(pieces.vocab_size()))
    (out / "tokens.txt").write_text("".join(table), encoding="utf-8")


if __name__ == "__main__":
    main()
