"""What a stage depends on: the code that it imports, config by dotted names, what differs."""

from __future__ import annotations

from enginewright.builder.stage_inputs import code_of, code_of_folder, difference, flat, tools


def test_a_stage_depends_on_the_code_that_it_imports_and_no_other():
    export = code_of("enginewright.builder.export")
    assert {
        "code builder/export.py",
        "code builder/linear.py",
        "code builder/families/__init__.py",
        "code plugins/attention/export.py",
    } <= export.keys()
    assert not any("passes" in name or "targets" in name for name in export)
    compiled = code_of("enginewright.builder.targets.cpu")
    assert "code builder/passes/quantize.py" in compiled
    assert not any("tensorrt" in name for name in compiled)
    assert not any(name.endswith(("builder/cache.py", "builder/publish.py")) for name in compiled)


def test_a_package_is_one_digest():
    ((name, value),) = code_of_folder("enginewright.runtime").items()
    assert name == "code runtime/"
    assert len(value) == 32


def test_nested_data_has_dotted_names():
    data = {"rope": {"theta": 1e4, "scale": None}, "ids": [1, 2], "tie": True}
    assert flat("config", data) == {
        "config.rope.theta": 1e4,
        "config.rope.scale": None,
        "config.ids.0": 1,
        "config.ids.1": 2,
        "config.tie": True,
    }


def test_a_difference_shows_values_and_hides_digests():
    old = {"precision": "int8", "code a.py": "0" * 32, "gone": 1, "same": 1}
    new = {"precision": "int4", "code a.py": "1" * 32, "new": 2, "same": 1}
    assert difference(old, new) == "code a.py, gone is gone, new is new, precision (int8 -> int4)"
    many = {str(n): n for n in range(9)}
    assert difference(many, {}).endswith("and 5 more")


def test_tools_have_python_among_them():
    assert {"tool python", "tool numpy"} == tools("numpy").keys()
