"""The runtime is light: what it must not import, what importing it must not cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import enginewright.runtime

ROOTS = Path(enginewright.runtime.__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml", "gguf")


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after running the code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_else() -> None:
    base = modules_after("from __future__ import annotations; import importlib, typing")
    more = modules_after("import enginewright.runtime") - base
    assert more == {"enginewright", "enginewright.runtime"}


def test_using_the_package_imports_nothing_heavy() -> None:
    modules = modules_after("from enginewright.runtime import LLM, SamplingParams; LLM.generate")
    assert not modules & set(HEAVY)
    assert "onnxruntime" not in modules, "a backend is imported when an engine is opened"
    assert "jinja2" not in modules, "templates are for chat only"
    assert not {name for name in modules if name.startswith("enginewright.builder")}


def test_generating_text_imports_nothing_heavy(tiny_artifact: Path) -> None:
    modules = modules_after(
        "from enginewright.runtime import LLM, SamplingParams\n"
        f"llm = LLM({str(tiny_artifact)!r}, threads=1)\n"
        "llm.chat([{'role': 'user', 'content': 'hi'}], SamplingParams(max_tokens=2))\n"
        "llm.close()"
    )
    assert "onnxruntime" in modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("root", ["runtime", "builder", "plugins"])
def test_the_namespace_has_no_init(root: str) -> None:
    assert not (ROOTS / root / "enginewright" / "__init__.py").exists()
