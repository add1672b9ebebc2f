"""Two deployments: an ingress that listens, and engines that answer.

The ingress hands a request on as it came; a replica of the engines answers it through the same
application that ``enginewright serve`` runs. So clients see no difference, and Ray Serve sees how
many requests each replica has, which is what it scales by.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, cast

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.options import ModelOptions, ServeOptions
from enginewright.server.ray_serve.forwarding import Answer, Forwarded, Head, prompt_of
from enginewright.server.ray_serve.options import RayOptions

# The public ray.serve.llm.request_router, which has it too, cannot be imported without vLLM.
_ROUTERS = "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router"
_ROUTER = "PrefixCacheAffinityRouter"
_UNEVEN = 8
_MOST_AT_ONCE = 100_000


class Engines:
    """One replica: the engines of all models, behind the server's application."""

    def __init__(self, options: ServeOptions) -> None:
        from enginewright.server.app import build_app
        from enginewright.server.registry import open_models

        self._served = open_models(options.models)
        self._app = build_app(options, self._served)

    async def answer(self, asked: Forwarded) -> AsyncGenerator[Head | bytes]:
        """The head, then the body as it comes; closing it gives the request up."""
        queue: asyncio.Queue[Message | None] = asyncio.Queue(1)
        given = False
        gone = asyncio.Event()

        async def receive() -> Message:
            nonlocal given
            if given:
                await gone.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": asked.body, "more_body": False}

        async def run() -> None:
            try:
                await self._app(asked.scope(), receive, queue.put)
            finally:
                await queue.put(None)

        running = asyncio.create_task(run())
        try:
            while (message := await queue.get()) is not None:
                if message["type"] == "http.response.start":
                    yield Head.of(message)
                elif message.get("body"):
                    yield message["body"]
            await running
        finally:
            gone.set()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        failed = [model.name for model in self._served if model.engine.errored]
        if failed:
            raise RuntimeError(f"the engine of {', '.join(failed)} failed")

    def stats(self) -> dict[str, int]:
        """Unfinished outputs by model."""
        return {model.name: model.unfinished for model in self._served}


class Ingress:
    """Listens, and hands requests on."""

    def __init__(self, engines: DeploymentHandle[Any]) -> None:
        self._engines: Any = engines.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> StreamingResponse:
        body = await request.body()
        path = str(request.scope["path"]).removeprefix(request.scope.get("root_path", "")) or "/"
        asked = Forwarded(
            request.method,
            path,
            request.url.query.encode(),
            list(request.headers.raw),
            body,
            prompt_of(path, body),
        )
        answer: Answer = self._engines.remote(asked)
        head = await anext(answer)
        assert isinstance(head, Head)
        response = StreamingResponse(cast(AsyncIterator[bytes], answer), head.status)
        response.raw_headers = head.headers
        return response


def application(args: Mapping[str, Any]) -> serve.Application:
    """The application of ``args``: the names of ``enginewright serve``'s config, and ``ray``.

    ``models`` lists the artifacts, or ``model`` is the only one; ``ray`` holds RayOptions.
    """
    settings = dict(args)
    how = RayOptions.of(settings.pop("ray", None) or {})
    models = settings.pop("models", None) or [{"model": settings.pop("model")}]
    options = ServeOptions.of([{"model": m} if isinstance(m, str) else m for m in models], settings)
    return bind(options, how)


def bind(options: ServeOptions, how: RayOptions) -> serve.Application:
    """The two deployments, put together."""
    target = how.target_ongoing_requests or _together(options.models[0])
    router = _prefix_aware() if how.prefix_aware else RequestRouterConfig()
    engines = serve.deployment(
        max_ongoing_requests=_MOST_AT_ONCE,
        autoscaling_config=AutoscalingConfig(
            min_replicas=how.min_replicas,
            max_replicas=how.max_replicas,
            initial_replicas=how.min_replicas,
            target_ongoing_requests=target,
            upscale_delay_s=how.upscale_delay,
            downscale_delay_s=how.downscale_delay,
        ),
        request_router_config=router,
        ray_actor_options={"num_cpus": how.num_cpus, "num_gpus": how.num_gpus},
        graceful_shutdown_timeout_s=options.drain_timeout,
    )(Engines)
    ingress = serve.deployment(
        max_ongoing_requests=_MOST_AT_ONCE, ray_actor_options={"num_cpus": 0}
    )(Ingress)
    return ingress.bind(engines.bind(options))


def _prefix_aware() -> RequestRouterConfig:
    try:
        found = importlib.import_module(_ROUTERS)
    except ImportError as error:
        raise EnginewrightError(
            f"Ray {ray.__version__} has no prefix-aware router where 2.60 has it ({error}): set "
            f"prefix_aware to false"
        ) from error
    return RequestRouterConfig(
        request_router_class=getattr(found, _ROUTER),
        request_router_kwargs={"imbalanced_threshold": _UNEVEN, "do_eviction": True},
    )


def _together(model: ModelOptions) -> float:
    """What a replica's engine runs together; more wait, and another replica is worth its start."""
    from enginewright.runtime.artifact.artifact import Artifact
    from enginewright.runtime.artifact.model_lookup import find_artifact

    built = Artifact.open(find_artifact(model.model), "never").manifest.engines[0]
    return float(min(built.limits.max_batch, model.max_num_seqs or built.limits.max_batch))
