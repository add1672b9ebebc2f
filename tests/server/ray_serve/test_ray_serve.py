"""Two nodes of Ray on this machine: replicas, routing by what prompts share, growth by load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from enginewright.runtime import LLM, SamplingParams
from tests.server.ray_serve.conftest import PATIENCE, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

DOCS = Path(__file__).parents[3] / "docs" / "serving-clients.md"
USER: Any = [{"role": "user", "content": "Call me Ishmael."}]
LONG = "It was the best of times, it was the worst of times. "


@pytest.fixture
def run(cluster: Any, tiny_artifact: Path) -> Iterator[Callable[..., str]]:
    """``run(min_replicas=2, ...)``: the application with these counts; its URL."""
    from ray import serve

    from enginewright.server.ray_serve.application import application

    def start(**ray: Any) -> str:
        model = {"model": str(tiny_artifact), "threads": 1, "served_model_name": ["tiny"]}
        args = {"models": [model], "enable_prompt_tokens_details": True}
        serve.run(application({**args, "ray": {"num_cpus": 2, **ray}}), name="enginewright")
        return address()

    yield start
    serve.delete("enginewright")


def address() -> str:
    """Where Serve's proxies listen."""
    from ray.serve.context import _get_global_client

    return f"http://127.0.0.1:{_get_global_client().http_config.port}"


def replicas() -> int:
    """How many replicas of the engines run."""
    from ray import serve

    deployments = serve.status().applications["enginewright"].deployments
    return int(deployments["Engines"].replica_states.get("RUNNING", 0))


def metrics(url: str) -> dict[str, float]:
    """The sum of each metric, of the replica that answers."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        name = sample.name.removeprefix("enginewright:")
        found[name] = found.get(name, 0.0) + sample.value
    return found


def expected_texts(offline: LLM, seeds: range, max_tokens: int) -> list[str]:
    params = [SamplingParams(max_tokens=max_tokens, seed=s, ignore_eos=True) for s in seeds]
    found = offline.chat([USER] * len(seeds), params, use_tqdm=False)
    texts = [each.outputs[0].text for each in found]
    assert all(texts)
    return texts


async def ask(client: openai.AsyncOpenAI, seed: int, max_tokens: int) -> str:
    """The answer; streamed where the seed is odd."""
    asked: Any = {"model": "tiny", "messages": USER, "max_tokens": max_tokens, "seed": seed}
    asked["extra_body"] = {"ignore_eos": True}
    if seed % 2 == 0:
        answer = await client.chat.completions.create(**asked)
        return str(answer.choices[0].message.content)
    stream = await client.chat.completions.create(**asked, stream=True)
    chunks = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len(chunks) > 2
    return "".join(chunks)


async def ask_all(url: str, seeds: range, max_tokens: int) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        return list(await asyncio.gather(*(ask(client, seed, max_tokens) for seed in seeds)))


def test_answers_of_both_replicas_are_those_of_the_offline_api(
    run: Callable[..., str], offline: LLM
) -> None:
    url, seeds, max_tokens = run(min_replicas=2, max_replicas=2, prefix_aware=False), range(32), 24
    assert replicas() == 2
    expected = expected_texts(offline, seeds, max_tokens)
    assert asyncio.run(ask_all(url, seeds, max_tokens)) == expected
    made: dict[float, float] = {}  # by replica, which its time of loading tells apart
    end = time.monotonic() + PATIENCE
    while len(made) < 2:
        assert time.monotonic() < end, "the other replica never answers"
        told = metrics(url)
        made[told["model_load_seconds"]] = told["generation_tokens_total"]
    assert all(made.values())
    assert sum(made.values()) == len(seeds) * max_tokens

    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=USER)
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_config_file_of_the_documentation(
    cluster: Any, tiny_artifact: Path, offline: LLM
) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    text = next(each for each in DOCS.read_text().split("```") if each.startswith("yaml\napplic"))
    config = yaml.safe_load(text.removeprefix("yaml"))
    (only,) = config["applications"]
    only["args"]["models"] = [{"model": str(tiny_artifact), "served_model_name": "my-model"}]
    only["args"]["ray"]["num_cpus"] = 2
    _get_global_client().deploy_apps(ServeDeploySchema(**config), _blocking=True)
    try:
        (expected,) = expected_texts(offline, range(1), 9)
        base = f"{address()}/v1"
        with openai.OpenAI(base_url=base, api_key="secret", max_retries=0) as client:
            answer = client.chat.completions.create(
                model="my-model",
                messages=USER,
                max_tokens=9,
                seed=0,
                extra_body={"ignore_eos": True},
            )
        assert answer.choices[0].message.content == expected
        with (
            openai.OpenAI(base_url=base, api_key="other", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.models.list()
    finally:
        serve.delete("enginewright")


def test_what_begins_alike_goes_to_the_same_replica(run: Callable[..., str]) -> None:
    url = run(min_replicas=2, max_replicas=2)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        for topic in ("tea", "ships", "rain", "maps"):
            cached = []
            for turn in range(3):
                prompt = f"{topic}: " + LONG * 3 + str(turn)
                answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=2)
                usage: Any = answer.usage
                cached.append(usage.prompt_tokens_details.cached_tokens)
            assert cached[1] > 50
            assert cached[2] > 50


def test_load_brings_another_replica(run: Callable[..., str], offline: LLM) -> None:
    url = run(max_replicas=2, target_ongoing_requests=1, upscale_delay=1)
    assert replicas() == 1
    expected = expected_texts(offline, range(8), 400)
    end = time.monotonic() + PATIENCE
    while replicas() < 2:
        assert time.monotonic() < end, "no second replica came"
        assert asyncio.run(ask_all(url, range(8), 400)) == expected


def test_a_client_that_goes_away_frees_its_place(run: Callable[..., str]) -> None:
    url = run()
    asked: Any = {"model": "tiny", "messages": USER, "stream": True}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        for _ in range(20):
            with client.chat.completions.create(**asked, extra_body={"ignore_eos": True}) as stream:
                next(iter(stream))
    end = time.monotonic() + PATIENCE
    while metrics(url)["num_requests_running"]:
        assert time.monotonic() < end, "a request still runs"
    assert metrics(url)["generation_tokens_total"] < 20 * 300  # of 20 * 570


def test_the_command_on_a_cluster_that_runs(
    cluster: Any, tiny_artifact: Path, offline: LLM
) -> None:
    """Serve runs there already, so its port stays; the application goes with the command."""
    from ray import serve

    flags = ["--ray", "--ray-address", cluster.address, "--num-cpus", "2", "--threads", "1"]
    command = [sys.executable, "-m", "enginewright.cli", "serve", f"tiny={tiny_artifact}", *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"{address()}/ready", process)
            assert asyncio.run(ask_all(address(), range(2), 9)) == expected_texts(
                offline, range(2), 9
            )
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert "enginewright" not in serve.status().applications
