"""Recipes for NVIDIA GPUs: what each target knows, and refusals before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from enginewright.builder.recipe import Recipe, make_recipe
from enginewright.runtime.errors import RecipeError


def recipe(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "tiny",
        "source": {"path": "/models/tiny"},
        "target": "tensorrt_rtx",
        "precision": "fp16",
        "limits": {"max_context": 128},
    }
    return make_recipe(data | changes)


def message(**changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(**changes)
    return str(caught.value)


def test_capabilities_may_be_numbers_and_are_put_in_order() -> None:
    assert recipe(capabilities=[12.0, "8.6", 8.9]).capabilities == ("8.6", "8.9", "12.0")
    assert recipe().capabilities is None
    assert recipe(capabilities=[8.6]).as_dict()["capabilities"] == ["8.6"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([9.0], "capabilities.0: 9.0 is not legal: TensorRT-RTX builds for 7.5, 8.0, 8.6, 8.9"),
        (["sm_86"], "'sm_86' is not legal"),
        ([True], "True is not legal"),
        ([], "name one at least, or leave the field out"),
        (8.6, "8.6 is not legal: it must be a list"),
    ],
)
def test_a_capability_that_is_none_is_told_with_those_that_are(value: Any, said: str) -> None:
    assert said in message(capabilities=value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp8"}, "precision fp8: GPUs of compute capability 8.0, 8.6 do not have it"),
        (
            {"precision": "fp8"},
            'give capabilities: ["8.9", "12.0", "12.1"], or some of them, or another precision',
        ),
        ({"precision": "nvfp4", "capabilities": [8.9, 12.0]}, "capability 8.9 do not have it"),
        ({"precision": "bf16", "capabilities": [7.5]}, "precision bf16"),
    ],
)
def test_a_precision_that_a_capability_lacks_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in message(**changes)


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [("fp8", [8.9, 12.0]), ("nvfp4", [12.0, 12.1]), ("int4", [7.5, 12.1]), ("bf16", None)],
)
def test_a_precision_that_all_capabilities_have_is_legal(precision: str, wanted: Any) -> None:
    assert recipe(precision=precision, capabilities=wanted).precision == precision


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("attention", "native", "tensorrt_rtx or tensorrt"),
        ("capabilities", [8.6], "tensorrt_rtx"),
        ("kv_cache", {"dtype": "int8"}, "cpu or tensorrt_rtx or tensorrt"),
        ("logits", "device", "tensorrt_rtx or tensorrt"),
        ("top_logits", 64, "tensorrt_rtx or tensorrt"),
        ("tensorrt", {"version_compatible": True}, "tensorrt"),
    ],
)
def test_a_field_of_another_target_is_told_whose_it_is(field: str, value: Any, known: str) -> None:
    for target, precision in (("cpu", "int8"), ("cuda", "fp16")):
        if target in known.split(" or "):
            continue
        said = message(target=target, precision=precision, **{field: value})
        assert f"{field}: " in said
        assert f"it is for target {known}, not for {target}" in said


def test_only_full_tensorrt_has_its_options_and_no_choice_of_capabilities() -> None:
    options = {"version_compatible": True, "hardware_compatibility": "ampere_plus"}
    made = recipe(target="tensorrt", tensorrt=options).tensorrt
    assert made is not None
    assert made.version_compatible
    assert "for target tensorrt, not for tensorrt_rtx" in message(tensorrt=options)
    assert "for target tensorrt_rtx, not for tensorrt" in message(
        target="tensorrt", capabilities=[8.6]
    )
    assert "it must be 'none', 'ampere_plus' or" in message(
        target="tensorrt", tensorrt={"hardware_compatibility": "all"}
    )
    assert "goes with attention: native" in message(
        target="tensorrt", tensorrt=options, attention="plugin"
    )


def test_the_cache_is_the_plugin_s() -> None:
    made = recipe(attention="plugin", kv_cache={"dtype": "fp8", "block_size": 64}).kv_cache
    assert made is not None
    assert (made.dtype, made.block_size) == ("fp8", 64)
    assert "kv_cache goes with attention: plugin" in message(kv_cache={"dtype": "int8"})
    assert "it must be 16, 32, 64 or 128" in message(
        attention="plugin", kv_cache={"block_size": 20}
    )
    assert "target tensorrt_rtx stores auto, int8, fp8" in message(
        attention="plugin", kv_cache={"dtype": "float16"}
    )
    assert "'int4' is not legal" in message(attention="plugin", kv_cache={"dtype": "int4"})


def test_how_many_logits_come_from_the_device() -> None:
    made = recipe(logits="device", top_logits=128)
    assert (made.logits, made.top_logits) == ("device", 128)
    assert recipe(logits="host").top_logits is None
    assert "top_logits goes with logits: device" in message(top_logits=128)
    assert "top_logits goes with logits: device" in message(top_logits=128, logits="host")
    assert "it must be 'host' or 'device'" in message(logits="gpu")
    for bad in (1, 3841, True):
        assert "top_logits: " in message(logits="device", top_logits=bad)


def test_fp32_is_no_precision_of_a_gpu() -> None:
    assert "target tensorrt builds fp16, bf16, int8, int4, fp8, nvfp4" in message(
        target="tensorrt", precision="fp32"
    )
    assert "target cuda builds fp16, bf16, int4" in message(target="cuda", precision="int8")
