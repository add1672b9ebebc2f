"""``enginewright serve --ray`` as a process, on a cluster of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.server.ray_serve.conftest import PATIENCE, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_the_command_serves_until_it_is_told_to_end(tiny_artifact: Path) -> None:
    pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    port = str(free_port())
    flags = ["--ray", "--port", port, "--threads", "1", "--api-key", "secret"]
    command = [sys.executable, "-m", "enginewright.cli", "serve", f"tiny={tiny_artifact}", *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/ready", process)
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
