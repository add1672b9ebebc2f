"""Logits processors by name, as classes, and those of a whole LLM."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginewright.runtime import (
    EnginewrightError,
    RequestError,
    SamplingParams,
    SamplingParamsError,
)
from enginewright.runtime.sampling import custom
from enginewright.runtime.sampling.custom import load_processors
from enginewright.runtime.sampling.sampler import Sampler

Logits = NDArray[np.float32]
V = 6

MODULE = """
def only_two(ids, logits):
    logits[:2] = logits[3:] = float("-inf")
    return logits

class Ascending:
    '''Of each output, the token after its last one.'''
    def __init__(self):
        self.next = 0
    def __call__(self, ids, logits):
        logits[:] = float("-inf")
        logits[self.next] = 0.0
        self.next += 1
        return logits

class Needy:
    def __init__(self, config):
        pass

class Space:
    only_two = staticmethod(only_two)

number = 3
"""
POINTS = """[enginewright.logits_processors]
two = own_processors:only_two
ascending = own_processors:Ascending
needy = own_processors:Needy
number = own_processors:number
gone = own_processors:gone
"""


@pytest.fixture(autouse=True)
def _installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that offers processors, as pip leaves one."""
    (tmp_path / "own_processors.py").write_text(MODULE, "utf-8")
    folder = tmp_path / "own_processors-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own_processors\n", "utf-8")
    (folder / "entry_points.txt").write_text(POINTS, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    custom.installed.cache_clear()
    yield
    custom.installed.cache_clear()


def greedy(params: SamplingParams, llm_processors: Any = ()) -> Sampler:
    return Sampler(params, V, (), [1], llm_processors=llm_processors)


def chosen(sampler: Sampler, count: int = 3) -> list[int]:
    output: list[int] = []
    for _ in range(count):
        output.append(sampler.sample(np.arange(V, dtype=np.float32), output).token_id)
    return output


def test_a_request_names_an_installed_processor() -> None:
    params = SamplingParams(temperature=0, logits_processors=["two"])
    assert params.logits_processors == ("two",)
    assert chosen(greedy(params)) == [2, 2, 2]


def test_a_class_is_instantiated_for_each_output() -> None:
    params = SamplingParams(temperature=0, logits_processors=["ascending"])
    assert chosen(greedy(params)) == [0, 1, 2]
    assert chosen(greedy(params)) == [0, 1, 2]


def test_an_unknown_name_lists_what_is_installed() -> None:
    for text in ("tow", "own_processors:only_two", ""):
        with pytest.raises(SamplingParamsError, match="installed are: ascending, gone, needy") as e:
            SamplingParams(logits_processors=[text])
        assert repr(text) in str(e.value)


def test_a_request_cannot_make_the_process_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom.importlib, "import_module", pytest.fail)
    with pytest.raises(SamplingParamsError):
        SamplingParams(logits_processors=["os:system"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("needy", r"logits_processors\[0\] \(needy\) cannot be made ready: TypeError"),
        ("gone", r"\(gone\) cannot be made ready: AttributeError"),
        ("number", r"\(number\) is not legal"),
    ],
)
def test_one_that_cannot_be_made_fails_its_request(name: str, said: str) -> None:
    with pytest.raises(SamplingParamsError, match=said):
        greedy(SamplingParams(logits_processors=[name]))


def add_ten_to_four(ids: list[int], logits: Logits) -> Logits:
    logits[4] += 10
    return logits


def test_an_llm_has_processors_for_every_request() -> None:
    """Functions, names and import paths; before the request's own."""
    given = load_processors(["own_processors:Space.only_two", "two", add_ten_to_four])
    assert len(given) == 3
    assert chosen(greedy(SamplingParams(temperature=0), given)) == [2, 2, 2]
    own = SamplingParams(temperature=0, logits_processors=[lambda ids, row: -row])
    assert chosen(greedy(own, [add_ten_to_four])) == [0, 0, 0]
    assert load_processors(None) == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("two", "logits_processors='two' is not legal"),
        (3, "logits_processors=3 is not legal"),
        ([3], "logits_processors=3 is not legal .it cannot be called"),
        (["tow"], "installed are: ascending"),
        (["no_such_module:f"], "cannot be imported: No module"),
        (["own_processors:none"], "cannot be imported: .*none"),
        (["own_processors:"], "cannot be imported"),
        (["own_processors:number"], "it cannot be called"),
        (["gone"], "cannot be imported"),
    ],
)
def test_an_llm_refuses_what_is_no_processor(given: Any, said: str) -> None:
    with pytest.raises(EnginewrightError, match=said):
        load_processors(given)


def test_an_llms_processor_that_fails_is_named() -> None:
    def broken(ids: list[int], logits: Logits) -> Logits:
        raise KeyError("x")

    with pytest.raises(RequestError, match=r"the LLM's logits_processors\[0\] \(broken\) failed"):
        chosen(greedy(SamplingParams(), [broken]))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (np.full(V, np.inf), "returned infinity: it must return finite numbers, or -inf"),
        ([0.0, np.inf, np.nan, 0, 0, 0], "returned NaN: it must return finite numbers, or -inf"),
        (np.zeros(V, dtype=np.complex64), "TypeError: it returned complex numbers"),
        ([1j] * V, "TypeError: it returned complex numbers"),
    ],
)
def test_what_a_processor_returns_is_named(returned: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        chosen(greedy(SamplingParams(logits_processors=[lambda ids, row: returned])))


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_what_a_processor_raises_fails_its_request_alone(kind: type[BaseException]) -> None:
    def leaves(ids: list[int], logits: Logits) -> Logits:
        raise kind("bye")

    def choose() -> None:
        with pytest.raises(RequestError, match=rf"\(leaves\) failed: {kind.__name__}: bye"):
            chosen(greedy(SamplingParams(logits_processors=[leaves])))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(choose).result()
    if kind is not KeyboardInterrupt:
        choose()
        return
    with pytest.raises(KeyboardInterrupt):  # the main thread's is the user's own
        chosen(greedy(SamplingParams(logits_processors=[leaves])))


@pytest.mark.parametrize("order", ["vllm", "hf"])
def test_a_row_that_a_processor_keeps_stays_as_it_was(order: Any) -> None:
    """Whatever is done to the logits after it: by what it returns, it gives nothing away."""
    given: list[Logits] = []
    seen: list[Logits] = []

    def keeping(ids: list[int], logits: Logits) -> Logits:
        given.append(logits)
        seen.append(logits.copy())
        return logits

    params = SamplingParams(
        temperature=0,
        repetition_penalty=1.5,
        frequency_penalty=1.0,
        logits_processors=[keeping, add_ten_to_four, keeping],
        processor_order=order,
    )
    chosen(greedy(params))
    assert len(given) == 6
    np.testing.assert_array_equal(given, seen)
