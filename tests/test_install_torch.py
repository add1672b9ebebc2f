"""scripts/install_torch.py: which builds of torch are tried, and which are good enough."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "install_torch.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_without_a_gpu_the_cpu_build_is_asked_for_first(script: dict[str, Any]) -> None:
    first, index, last = script["attempts"]("2.13.0", linux=True, gpu=False)

    assert first == ["torch==2.13.0+cpu"]
    assert "--index-url" in index
    assert "--no-deps" in last, "the last resort must not bring CUDA's packages along"


@pytest.mark.parametrize(("linux", "gpu"), [(True, True), (False, False)])
def test_elsewhere_the_plain_release_is_taken(
    script: dict[str, Any], linux: bool, gpu: bool
) -> None:
    assert script["attempts"]("2.13.0", linux=linux, gpu=gpu) == [["torch==2.13.0"]]


@pytest.mark.parametrize(
    ("found", "gpu", "expected"),
    [
        (("2.13.0+cpu", "None"), False, True),
        (("2.13.0", "None"), False, True),
        (("2.13.0+cu130", "13.0"), False, False),
        (("2.13.0+cu130", "13.0"), True, True),
        (("2.12.0+cpu", "None"), False, False),
        (None, False, False),
    ],
)
def test_a_cuda_build_is_refused_where_there_is_no_gpu(
    script: dict[str, Any], found: tuple[str, str] | None, gpu: bool, expected: bool
) -> None:
    assert script["suits"](found, "2.13.0", gpu=gpu) is expected


def test_the_version_is_the_pinned_one(script: dict[str, Any]) -> None:
    text = script["CONSTRAINTS"].read_text("utf-8")

    assert f"torch=={script['pinned_version'](text)}" in text.splitlines()
    with pytest.raises(SystemExit, match="no line torch=="):
        script["pinned_version"]("numpy==2.4.6\n")


def test_the_installed_torch_is_read_without_importing_it(script: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")

    assert script["installed"]() == (torch.__version__, str(torch.version.cuda))
