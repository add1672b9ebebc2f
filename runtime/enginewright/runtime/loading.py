"""From a model's name to what runs requests: find, check, open."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry, Manifest
from enginewright.runtime.artifact.model_lookup import find_artifact
from enginewright.runtime.engine import Engine, EngineInfo
from enginewright.runtime.explain import Explanation
from enginewright.runtime.freed_memory import give_back
from enginewright.runtime.options import EngineOptions, RequestOptions, check_path
from enginewright.runtime.plans import open_entry, open_plan
from enginewright.runtime.requests.factory import RequestFactory
from enginewright.runtime.sampling.custom import load_processors
from enginewright.runtime.sampling.defaults import choose_defaults
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.speculation.opening import open_speculator
from enginewright.runtime.speculation.stats import SpeculationStats
from enginewright.runtime.text.linter import Facts
from enginewright.runtime.text.prompt_warnings import PromptWarnings
from enginewright.runtime.text.templates import Templates
from enginewright.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """An artifact whose engine is open. ``plan``: which of its plans runs."""

    manifest: Manifest
    plan: str
    core: EngineCore
    requests: RequestFactory
    speculation: SpeculationStats | None = None


class LoadedModel:
    """What can be asked of a loaded model without running it."""

    def __init__(self, loaded: Loaded) -> None:
        self.manifest = loaded.manifest
        self.plan = loaded.plan
        """Which of the artifact's plans runs."""
        self.requests = loaded.requests
        self.speculation = loaded.speculation
        """What speculation has drafted and how much of it was right; None without a
        ``speculative_config``."""

    @property
    def engine_info(self) -> EngineInfo:
        """What the engine declares, within the limits that were asked for."""
        return self.requests.info

    @property
    def max_batch(self) -> int:
        """Requests that run together; more wait."""
        return self.engine_info.max_batch

    @property
    def max_context(self) -> int:
        """Tokens of prompt and output together that a request may have."""
        return self.engine_info.max_context

    def get_tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer."""
        return self.requests.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without ``sampling_params`` uses."""
        return self.requests.defaults.params

    def explain(self, params: SamplingParams | None = None) -> Explanation:
        """Every parameter that a call with ``params`` would run with, and where it came from.

        A value that was given and equals the default is told as the default.
        """
        return self.requests.explain(params)


def load(
    model: str | os.PathLike[str],
    how: EngineOptions,
    requests: RequestOptions,
    instead: Engine | EngineEntry | None = None,
) -> Loaded:
    """Open the artifact that ``model`` names, or one that was built from it.

    ``instead``: what is run in place of the artifact's own: an open engine, which is closed if this
    fails, or an entry to be opened.
    """
    with ExitStack() as opened:
        loaded = _load(model, how, requests, instead, opened)
        opened.pop_all()
    return loaded


def _load(
    model: str | os.PathLike[str],
    how: EngineOptions,
    requests: RequestOptions,
    instead: Engine | EngineEntry | None,
    opened: ExitStack,
) -> Loaded:
    """``opened`` closes whatever is open."""
    if isinstance(instead, Engine):
        opened.callback(instead.close)
    place = find_artifact(check_path(model), revision=how.revision, precision=how.quantization)
    artifact = Artifact.open(place, how.verify)
    how.check_policy(artifact)
    manifest = artifact.manifest
    how.check_built(manifest, artifact.engine(how.target))
    defaults = choose_defaults(
        manifest, requests.generation_config, requests.override_generation_config
    )
    processors = load_processors(requests.logits_processors)
    tokenizer = Tokenizer.from_file(artifact.file("tokenizer.json"))
    templates = Templates(artifact, requests.chat_template)
    if requests.chat_template is not None:
        templates.get()  # compiled now, so that a wrong one fails here
    warnings = PromptWarnings(Facts.of(artifact, tokenizer, templates.source))
    plan = how.plan or manifest.engines[0].plan
    if isinstance(instead, Engine):
        engine = instead
    elif instead is not None:
        engine, plan = open_entry(artifact, instead), instead.plan
    else:
        engine, entry = open_plan(
            artifact,
            target=how.target,
            plan=how.plan,
            allow_native_code=how.allow_native_code,
            threads=how.threads,
            in_turns=how.speculation is not None and how.speculation.method == "draft_model",
            limited=how.lowered,
        )
        plan = entry.plan
    if engine is not instead:
        opened.callback(engine.close)
    core, speculation = _open_core(how, engine, tokenizer, opened)
    factory = RequestFactory(
        core.describe(),
        tokenizer,
        templates,
        warnings,
        defaults,
        tuple(sorted({*manifest.eos_token_ids, *defaults.eos_token_ids})),
        requests.seed,
        requests.max_logprobs,
        processors,
    )
    give_back()  # a tokenizer takes twice as much to parse as it keeps
    return Loaded(manifest, plan, core, factory, speculation)


def _open_core(
    how: EngineOptions, engine: Engine, tokenizer: Tokenizer, opened: ExitStack
) -> tuple[EngineCore, SpeculationStats | None]:
    """What runs requests on the engine, and the counts of what is drafted for it."""
    speculator = None
    if how.speculation is not None:
        speculator = open_speculator(how, engine.describe(), tokenizer)
        opened.callback(speculator.close)
    core = how.core(engine, speculator)
    return core, None if speculator is None else speculator.stats
