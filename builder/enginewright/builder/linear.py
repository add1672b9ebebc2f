"""``enginewright::Linear``: y = x W^T + b as one node, so that passes see weights as stored.

| tensor | shape    | dtype | meaning                                   |
|--------|----------|-------|-------------------------------------------|
| x      | [..., K] | T     | activations                               |
| weight | [N, K]   | T     | the weight as the checkpoint stores it    |
| bias   | [N]      | T     | optional                                  |
| *y*    | [..., N] | T     |                                           |
"""

from __future__ import annotations

from typing import Any

import onnx
import onnxscript
import torch

DOMAIN = "enginewright"
OP_TYPE = "Linear"


def _schema() -> onnx.defs.OpSchema:
    parameter = onnx.defs.OpSchema.FormalParameter
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        1,
        inputs=[
            parameter("x", "T"),
            parameter("weight", "T"),
            parameter("bias", "T", param_option=optional),
        ],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
    )


def translations() -> dict[Any, Any]:
    """The entries for torch.onnx.export's ``custom_translation_table``."""
    node = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), OP_TYPE, _schema())

    def translate(x: Any, weight: Any, bias: Any = None) -> Any:
        return node(x, weight) if bias is None else node(x, weight, bias)

    return {torch.ops.aten.linear.default: translate}
