"""``enginewright serve``: the OpenAI-compatible server over one artifact or several."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginewright.cli.engine_options import policy_option, read_json_object
from enginewright.cli.extras import require
from enginewright.cli.ray_options import ray_options, take_ray_options
from enginewright.server.options import ModelOptions, ServeOptions, field_names

if TYPE_CHECKING:
    from enginewright.runtime.trust.policy import Policy
    from enginewright.server.registry import ServedModels

_TASKS = ("auto", "generate")
_FLAGS = {"int": int, "float": float, "str": str}


def _setting(each: dataclasses.Field[Any]) -> click.Option:
    """The flag of one setting; None, or nothing, where it is not given."""
    flag, kind = f"--{each.name.replace('_', '-')}", str(each.type).removesuffix(" | None")
    told = each.metadata["help"]
    if each.default not in (None, (), "", False, True):
        shown = ", ".join(each.default) if isinstance(each.default, tuple) else each.default
        told += f"  [{shown}]"
    if kind == "bool":
        off = f"--no-{flag[2:]}" if not flag.startswith("--allow-native") else "--no-native-code"
        return click.Option([f"{flag}/{off}"], default=None, help=told)
    if kind == "Mapping[str, Any]":
        return click.Option([flag], metavar="JSON", callback=read_json_object, help=told)
    if kind == "Sequence[str]":
        return click.Option([flag], multiple=True, help=f"{told} May be repeated.")
    return click.Option([flag], type=_FLAGS.get(kind, str), help=told)


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for every setting of the server and of a model."""
    fields = [*dataclasses.fields(ModelOptions), *dataclasses.fields(ServeOptions)]
    legal = field_names(ModelOptions) | field_names(ServeOptions)
    made = [_setting(each) for each in fields if each.name in legal - {"policy"}]
    params = command.__dict__.setdefault("__click_params__", [])
    params.extend(reversed(made))
    return command


@click.command(
    epilog="Flags go over the config file. Keys may also come from ENGINEWRIGHT_API_KEY."
)
@click.argument("artifacts", metavar="[NAME=]ARTIFACT...", nargs=-1)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A YAML file with these names; models lists several artifacts with settings of their own.",
)
@click.option("--task", help="The older name of --runner.")
@click.option(
    "--enable-auto-tool-choice", is_flag=True, expose_value=False, help="vLLM's; always so here."
)
@ray_options
@policy_option
@_settings
def command(
    artifacts: tuple[str, ...],
    config: Path | None,
    task: str | None,
    policy: Policy | None,
    **flags: Any,
) -> None:
    """Serve ARTIFACT, or several under their names, to clients of the OpenAI API."""
    require("serve", "fastapi", "uvicorn", "prometheus_client", "yaml")
    over_ray = take_ray_options(flags)
    flags["policy"] = None if policy is None else policy.as_data()
    if task is not None:
        click.echo("warning: --task is the older name of --runner; use that", err=True)
        flags["runner"] = flags["runner"] or task
    options = _options(artifacts, config, flags)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if over_ray is not None:
        _run_over_ray(options, *over_ray)
        return
    from enginewright.server.app import build_app
    from enginewright.server.life import Life, run
    from enginewright.server.listening import check_tls, unix_socket
    from enginewright.server.registry import open_models

    check_tls(options)
    with unix_socket(options.uds) as bound:
        served = open_models(options.models)
        life = Life.of(options)
        try:
            app = build_app(options, served, life)
            click.echo(describe(options, served), err=True)
            run(app, life, options, bound)
        finally:
            served.close()


def _run_over_ray(options: ServeOptions, given: Mapping[str, Any], address: str | None) -> None:
    require("ray", "ray")
    from enginewright.server.ray_serve.options import RayOptions
    from enginewright.server.ray_serve.run import run_over_ray

    run_over_ray(options, RayOptions.of(given), address)


def _options(
    artifacts: tuple[str, ...], config: Path | None, flags: Mapping[str, Any]
) -> ServeOptions:
    from enginewright.server.config_file import read_config

    models, settings = read_config(config) if config is not None else ([], {})
    settings |= {name: value for name, value in flags.items() if value not in (None, ())}
    if artifacts:
        models = [_model(each) for each in artifacts]
    if not models:
        raise click.UsageError("there is no artifact to serve: name one, or a config with models")
    if "task" in settings:
        settings.setdefault("runner", settings.pop("task"))
    return ServeOptions.of(models, settings)


def _model(text: str) -> dict[str, Any]:
    """``NAME=ARTIFACT``, where no artifact is called like the whole of it."""
    name, equals, place = text.partition("=")
    if not text.strip():
        raise click.UsageError("an artifact's name is empty: give its path")
    if not equals or Path(text).exists():
        return {"model": text}
    if not name or not place:
        raise click.UsageError(f"{text!r}: the form is NAME=ARTIFACT")
    return {"model": place, "served_model_name": (name,)}


def describe(options: ServeOptions, served: ServedModels) -> str:
    """What is served, where, and within which limits."""
    where = f"{'https' if options.ssl_certfile else 'http'}://{options.host}:{options.port}"
    lines = [f"serving on {f'unix:{options.uds}' if options.uds else where}{options.root_path}"]
    for model in served:
        engine = model.engine
        lines += [
            f"model      {', '.join(model.names)}",
            f"  engine   {engine.manifest.name}, plan {engine.plan}, "
            f"loaded in {model.load_seconds:.2f} s",
            f"  limits   {engine.max_context} tokens a request, {engine.max_batch} outputs at a "
            f"time, {model.options.max_num_queued_reqs} more may wait",
            f"  parsers  of tool calls {model.tool_parser or 'none'}, of reasoning "
            f"{model.reasoning_parser or 'none'}",
        ]
    time = f"{options.request_timeout:g} s" if options.request_timeout else "no limit"
    lines.append(
        f"requests   {options.max_body_bytes} bytes, {options.max_prompts} prompts, n up to "
        f"{options.max_n}, {time}"
    )
    return "\n".join(lines)
