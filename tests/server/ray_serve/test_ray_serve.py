"""Two nodes of Ray on this machine: replicas, routing by what prompts share, growth by load."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from enginewright.runtime import LLM, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

USER: Any = [{"role": "user", "content": "Call me Ishmael."}]
LONG = "It was the best of times, it was the worst of times. "
PATIENCE = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, each with the CPUs for one replica; one CPU more, for Ray's router."""
    pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    found.add_node(num_cpus=2)
    ray.init(address=found.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": _free_port()})
    try:
        yield found
    finally:
        serve.shutdown()
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def run(cluster: Any, tiny_artifact: Path) -> Iterator[Callable[..., str]]:
    """``run(min_replicas=2, ...)``: the application of a config file with these counts; its URL."""
    from ray import serve
    from ray.serve.context import _get_global_client

    from enginewright.server.ray_serve.application import application

    def start(**ray: Any) -> str:
        model = {"model": str(tiny_artifact), "threads": 1, "served_model_name": ["tiny"]}
        args = {"models": [model], "enable_prompt_tokens_details": True}
        serve.run(application({**args, "ray": {"num_cpus": 2, **ray}}), name="enginewright")
        port = _get_global_client().http_config.port
        return f"http://127.0.0.1:{port}"

    yield start
    serve.delete("enginewright")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def replicas() -> int:
    """How many replicas of the engines run."""
    from ray import serve

    deployments = serve.status().applications["enginewright"].deployments
    return int(deployments["Engines"].replica_states.get("RUNNING", 0))


def metric(url: str, name: str) -> float:
    """The sum of a metric, of the replica that is asked."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == f"enginewright:{name}")


def test_answers_are_those_of_the_offline_api(run: Callable[..., str], offline: LLM) -> None:
    url = run(min_replicas=2, max_replicas=2)
    assert replicas() == 2
    (expected,) = offline.chat(USER, SamplingParams(max_tokens=9, seed=4), use_tqdm=False)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        asked: Any = {"model": "tiny", "messages": USER, "max_tokens": 9, "seed": 4}
        for _ in range(4):  # by whichever replica
            answer = client.chat.completions.create(**asked)
            assert answer.choices[0].message.content == expected.outputs[0].text
        with client.chat.completions.create(**asked, stream=True) as stream:
            chunks = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(chunks) == expected.outputs[0].text
        assert len(chunks) > 2
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=USER)
        assert [model.id for model in client.models.list()] == ["tiny"]


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
    (expected,) = offline.chat(USER, SamplingParams(max_tokens=400, seed=1), use_tqdm=False)

    async def ask(client: openai.AsyncOpenAI, end: float) -> None:
        while replicas() < 2:
            assert time.monotonic() < end, "no second replica came"
            answer = await client.chat.completions.create(
                model="tiny", messages=USER, max_tokens=400, seed=1
            )
            assert answer.choices[0].message.content == expected.outputs[0].text

    async def main() -> None:
        end = time.monotonic() + PATIENCE
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            await asyncio.gather(*(ask(client, end) for _ in range(8)))

    asyncio.run(main())


def test_a_client_that_goes_away_frees_its_place(run: Callable[..., str]) -> None:
    url = run()
    asked: Any = {"model": "tiny", "messages": USER, "stream": True}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        for _ in range(20):
            with client.chat.completions.create(**asked, extra_body={"ignore_eos": True}) as stream:
                next(iter(stream))
    end = time.monotonic() + PATIENCE
    while metric(url, "num_requests_running"):
        assert time.monotonic() < end, "a request still runs"
    assert metric(url, "generation_tokens_total") < 20 * 500


def test_the_command_serves_until_it_is_told_to_end(tiny_artifact: Path) -> None:
    pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    port = str(_free_port())
    flags = ["--ray", "--port", port, "--threads", "1", "--api-key", "secret"]
    command = [sys.executable, "-m", "enginewright.cli", "serve", f"tiny={tiny_artifact}", *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/ready", process)
            base = f"http://127.0.0.1:{port}/v1"
            with openai.OpenAI(base_url=base, api_key="secret", max_retries=0) as client:
                answer = client.completions.create(model="tiny", prompt="Call", max_tokens=3)
                assert answer.choices[0].text
            with (
                openai.OpenAI(base_url=base, api_key="other", max_retries=0) as stranger,
                pytest.raises(openai.AuthenticationError),
            ):
                stranger.models.list()
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.2)
