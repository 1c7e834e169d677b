"""Make the forms of MiniLM that the peers read: ``python -m benchmarks.convert MINILM_FOLDER FORMS_FOLDER``.

The ONNX graph is exported by PyTorch and fused by ONNX Runtime's transformer optimizer; that every layer's
attention was fused is checked, since a graph that the optimizer does not recognise is several times slower
and no fair peer. OpenVINO converts the unfused graph, as it fuses itself; CTranslate2 reads the checkpoint.
"""

import sys
import warnings
from pathlib import Path

from benchmarks.peers import FORMS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export_onnx(folder: Path, file: Path) -> None:
    """Export BERT with a free batch size and length."""
    import torch
    from transformers import BertModel

    class ByPosition(torch.nn.Module):  # type: ignore[misc]
        """The exporter passes inputs by position, the model takes other things there."""

        def __init__(self) -> None:
            super().__init__()
            # The optimizer knows the patterns of written-out attention, not of PyTorch's fused one.
            self.bert = BertModel.from_pretrained(
                folder, attn_implementation="eager", add_pooling_layer=False
            )

        def forward(self, *inputs: object) -> object:
            return self.bert(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state

    ids = torch.randint(1000, 20000, (2, 16))
    free = {0: "batch", 1: "length"}
    torch.onnx.export(
        ByPosition().eval(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(file),
        input_names=list(INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys([*INPUTS, "last_hidden_state"], free),
        opset_version=17,
        dynamo=False,  # the optimizer fuses no attention in what the newer exporter writes
    )


def fuse(raw: Path, fused: Path, *, layers: int = 6, heads: int = 12, width: int = 384) -> None:
    """Let ONNX Runtime fuse the graph, and see that it did."""
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(raw), model_type="bert", num_heads=heads, hidden_size=width)
    counts = model.get_fused_operator_statistics()
    if counts["Attention"] != layers:
        sys.exit(
            f"{counts['Attention']} of {layers} attentions were fused: are the versions those of bench.txt?"
        )
    model.save_model_to_file(str(fused))


def main() -> None:
    """Make the forms that are not there yet."""
    folder, forms = map(Path, sys.argv[1:])
    forms.mkdir(parents=True, exist_ok=True)
    raw = forms / "minilm.onnx"
    if not raw.exists():
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # tracing warns of shapes that become constants; `measure` checks results
            export_onnx(folder, raw)
    if not (fused := forms / FORMS["onnxruntime"]).exists():
        fuse(raw, fused)
    if not (file := forms / FORMS["openvino"]).exists():
        import openvino

        openvino.save_model(openvino.convert_model(str(raw)), str(file), compress_to_fp16=False)
    if not (target := forms / FORMS["ctranslate2"]).exists():
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(folder)).convert(str(target))
    print(f"{forms}: {', '.join(sorted(path.name for path in forms.iterdir()))}")


if __name__ == "__main__":
    main()
