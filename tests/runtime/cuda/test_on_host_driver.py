"""The CUDA layer and the TensorRT engine over it, through cuda-bindings, on the host's memory.

The driver is host_driver.c, TensorRT is host_library.py; everything between them is the real code.
What neither shows: kernels, and TensorRT itself.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("cuda.bindings")


@pytest.mark.parametrize(
    "scenario",
    [
        "facts",
        "copies",
        "graphs",
        "launches",
        "prompts_of_one_token_behind_other_rows",
        "logits_of_many_positions",
        "copies_of_parts_of_blocks",
        "a_smaller_pool",
    ],
)
def test_scenario(on_host_driver: Any, scenario: str) -> None:
    on_host_driver(scenario)


@pytest.mark.parametrize("layout", ["slots", "paged"])
@pytest.mark.parametrize("capturable", ["yes", "no", "fails"])
def test_any_mix_of_requests(on_host_driver: Any, layout: str, capturable: str) -> None:
    on_host_driver("any_mix", layout, capturable)


@pytest.mark.parametrize("layout", ["slots", "paged"])
@pytest.mark.parametrize("capturable", ["yes", "no", "fails"])
def test_the_highest_logits_alone_come_back(
    on_host_driver: Any, layout: str, capturable: str
) -> None:
    on_host_driver("highest_logits", layout, capturable)


@pytest.mark.parametrize("layout", ["slots", "paged"])
def test_prefixes_are_shared(on_host_driver: Any, layout: str) -> None:
    on_host_driver("shared_prefixes", layout)


def test_loads_are_refused_with_the_codes_of_doctor(on_host_driver: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    on_host_driver("refusals")


def test_no_device(on_host_driver: Any) -> None:
    on_host_driver("no_device", devices=0)


def test_out_of_memory_tells_asked_and_free(on_host_driver: Any) -> None:
    on_host_driver("out_of_memory", memory=100 << 20)


def test_no_memory_for_the_cache(on_host_driver: Any) -> None:
    on_host_driver("no_memory_for_the_cache", memory=1 << 20)


def test_no_memory_for_a_prompt(on_host_driver: Any) -> None:
    on_host_driver("no_memory_for_a_prompt", memory=1 << 20)
