"""The CI templates of the documentation: their scripts are run, against a real registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from enginewright.cli.diff.gate import read_gate
from enginewright.cli.main import main
from enginewright.cli.settings_file import read_settings
from enginewright.runtime.trust.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / "docs" / "ci"
GATE = "max_worse: {perplexity: 0.5%, size: 5%}\nno_lower: [max_context]\nunchanged: [template]\n"
PROGRAMS = ("sh", "bash", "basename", "mktemp", "rm")
"""All that the scripts call beside the command; no compiler, so that builds are quick."""


def github() -> Iterator[str]:
    """The scripts of the workflow, but for those that install and log in."""
    for step in github_job()["steps"]:
        if "run" in step and step["name"] not in ("Install", "Log in"):
            yield step["run"]


def github_job() -> Any:
    """The job of the workflow."""
    return yaml.safe_load((CI / "github-actions.yml").read_text("utf-8"))["jobs"]["engines"]


def gitlab() -> Iterator[str]:
    """The scripts of the jobs, stage by stage, without the login."""
    pipeline = yaml.safe_load((CI / "gitlab-ci.yml").read_text("utf-8"))
    for stage in pipeline["stages"]:
        jobs = (job for job in pipeline.values() if isinstance(job, dict))
        for job in (job for job in jobs if job.get("stage") == stage):
            yield "\n".join(part for part in job["script"] if part != pipeline[".login"])


@pytest.fixture
def project(make_checkpoint: Any, tmp_path: Path) -> Path:
    """A repository with a recipe, a gate, a key, and the command on its PATH."""
    folder = tmp_path / "project"
    make_checkpoint(folder / "checkpoint", {})
    (folder / "recipes").mkdir()
    recipe = {
        "name": "tiny",
        "source": {"path": "../checkpoint"},
        "target": "cpu",
        "precision": "fp32",
        "limits": {"max_context": 128, "max_batch": 2},
    }
    (folder / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "gate.yaml").write_text(GATE)
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(folder / "key.pem")],
        check=True,
        capture_output=True,
    )
    write_public_key(folder / "key.pem", folder / "release.pub")
    command = folder / "bin" / "enginewright"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m enginewright.cli "$@"\n')
    command.chmod(0o755)
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found is not None, name
        command.with_name(name).symlink_to(found)
    return folder


def write_public_key(pem: Path, place: Path) -> None:
    subprocess.run(["openssl", "pkey", "-in", pem, "-pubout", "-out", place], check=True)


def run_all(scripts: Iterator[str], project: Path, registry: str, key: str) -> str | None:
    """Run the scripts in order; the first that fails: what it wrote."""
    environment = {
        **os.environ,
        "PATH": str(project / "bin"),
        "REGISTRY": f"oci://{registry}/engines",
        "COMMIT": "0123abc",
        "SIGNING_KEY": key,
    }
    for script in scripts:
        done = subprocess.run(
            [str(project / "bin" / "bash"), "-e", "-o", "pipefail", "-c", script],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return done.stdout + done.stderr
    return None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
@pytest.mark.parametrize(
    "template", [github, pytest.param(gitlab, marks=pytest.mark.slow)], ids=["github", "gitlab"]
)
def test_the_road_of_a_template(
    template: Callable[[], Iterator[str]], project: Path, registry: str, tmp_path: Path
) -> None:
    pem = project / "key.pem"
    key = pem.read_text("utf-8").strip() if template is github else str(pem)
    assert run_all(template(), project, registry, key) is None, "nothing is deployed yet"
    public = project / "release.pub"
    for tag in ("deployed", "0123abc"):
        arguments = ["pull", f"oci://{registry}/engines/tiny:{tag}", "-o", str(tmp_path / tag)]
        pulled = CliRunner().invoke(main, [*arguments, "--require-signature", str(public)])
        assert pulled.exit_code == 0, pulled.output

    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace("max_context: 128", "max_context: 64"))
    said = run_all(template(), project, registry, key)
    assert said is not None
    assert "plain.max_context is lower: 128 in A, 64 in B" in said


def test_only_the_step_that_needs_a_secret_of_github_sees_it() -> None:
    job = github_job()
    steps = {step["name"]: step for step in job["steps"] if "name" in step}
    assert "secrets." not in str(job["env"])
    seeing = {name: step["env"] for name, step in steps.items() if "secrets." in str(step)}
    assert {name: list(env) for name, env in seeing.items()} == {
        "Log in": ["REGISTRY_TOKEN"],
        "Sign and push": ["SIGNING_KEY"],
    }
    for name in ("Log in", "Hold them to the gate"):
        assert "head.repo.full_name == github.repository" in steps[name]["if"], "not for forks"


def test_only_jobs_of_gitlab_that_use_the_registry_log_in() -> None:
    pipeline = yaml.safe_load((CI / "gitlab-ci.yml").read_text("utf-8"))
    jobs = {name: job for name, job in pipeline.items() if isinstance(job, dict)}
    logging_in = [name for name, job in jobs.items() if pipeline[".login"] in job.get("script", ())]
    assert logging_in == ["gate", "promote"]
    assert "CI_REGISTRY_PASSWORD" not in str(jobs["default"])
    assert pipeline["gate"]["rules"][0]["when"] == "never", "not for forks"


def test_the_templates_name_where_the_package_comes_from() -> None:
    for name in ("github-actions.yml", "gitlab-ci.yml"):
        text = (CI / name).read_text("utf-8")
        assert 'pip install "$PACKAGE"' in text
        assert "not on PyPI" in text


def test_the_gate_and_the_policy_of_the_documentation_are_legal() -> None:
    gate = read_gate(read_settings(CI / "gate.yaml"), "gate.yaml")
    assert gate.speeds
    policy = Policy.of(read_settings(CI / "policy.yaml"), "policy.yaml", CI)
    assert policy.signed_by == (CI / "release.pub",)


def test_the_hook_checks_recipes(tmp_path: Path) -> None:
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    program, verb = hook["entry"].split()
    assert program == "enginewright"
    recipes = sorted(map(str, (ROOT / "recipes").glob("*.yaml")))
    good = CliRunner().invoke(main, [verb, *recipes])
    assert good.exit_code == 0, good.output
    assert f"{len(recipes)} artifacts in {len(recipes)} recipes" in good.stdout

    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(Path(recipes[0]).read_text("utf-8").replace("precision: fp32", "precision: x"))
    bad = CliRunner().invoke(main, [verb, str(wrong), recipes[1]])
    assert bad.exit_code == 1
    assert "precision" in bad.stderr
    twice = CliRunner().invoke(main, [verb, recipes[0], recipes[0]])
    assert twice.exit_code == 1
    assert "two recipes of one name" in twice.stderr


def test_the_hook_needs_only_what_it_names() -> None:
    code = (
        "import sys\nsys.argv = ['enginewright', 'lint-recipe', *sys.argv[1:]]\n"
        "from enginewright.cli.main import main\n"
        "main(standalone_mode=False)\n"
        "print(*sorted(m for m in sys.modules if '.' not in m))\n"
    )
    recipe = str(ROOT / "recipes" / "smollm2-135m-instruct-cpu-int8.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, recipe], capture_output=True, text=True, check=True
    )
    assert not {"torch", "onnx", "onnx_ir", "transformers"} & set(done.stdout.split())


def test_the_image_installs_extras_that_exist() -> None:
    text = (CI / "Containerfile").read_text("utf-8")
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [asked] = [line for line in text.splitlines() if "pip install" in line]
    named = asked.partition("[")[2].partition("]")[0].split(",")
    assert set(named) <= extras["optional-dependencies"].keys()
