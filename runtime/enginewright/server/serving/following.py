"""One prompt through the engine, counted as it goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from enginewright.runtime import (
    BeamSearchOutput,
    BeamSearchParams,
    CompletionOutput,
    RequestOutput,
)
from enginewright.server.access_log import Record
from enginewright.server.metrics import ModelMetrics
from enginewright.server.registry import ServedModel
from enginewright.server.serving.prompts import ReadPrompt
from enginewright.server.serving.sampling import Params


async def follow(
    model: ServedModel,
    metrics: ModelMetrics,
    record: Record,
    prompt: ReadPrompt,
    params: Params,
) -> AsyncGenerator[RequestOutput]:
    """The outputs of one prompt; of a beam search one, with all beams."""
    watch = metrics.watch(params, record, len(prompt.ids))
    outputs = _outputs(model, prompt, params)
    try:
        async with aclosing(outputs):
            async for output in outputs:
                watch.take(output)
                yield output
    finally:
        watch.end()


async def _outputs(
    model: ServedModel, prompt: ReadPrompt, params: Params
) -> AsyncGenerator[RequestOutput]:
    if isinstance(params, BeamSearchParams):
        yield _as_output(prompt, await model.engine.beam_search(prompt.as_prompt, params))
        return
    async with aclosing(model.engine.generate(prompt.as_prompt, params)) as stream:
        async for output in stream:
            yield output


def _as_output(prompt: ReadPrompt, found: BeamSearchOutput) -> RequestOutput:
    """The beams, best first, as the outputs of a request."""
    beams = [
        CompletionOutput(
            index=index,
            text=beam.generated_text,
            token_ids=beam.generated_token_ids,
            cumulative_logprob=beam.cum_logprob,
            logprobs=beam.logprobs,
            finish_reason=beam.finish_reason,
            stop_reason=beam.stop_reason,
        )
        for index, beam in enumerate(found.sequences)
    ]
    return RequestOutput(
        request_id="",
        prompt=prompt.text,
        prompt_token_ids=prompt.ids,
        prompt_logprobs=None,
        outputs=beams,
        finished=True,
        metrics=found.metrics,
        error=found.error,
    )
