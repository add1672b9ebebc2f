"""From a config to a speculator: the draft is found, checked against its target, and opened."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.artifact.model_lookup import find_artifact
from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import ArtifactError, EnginewrightError
from enginewright.runtime.options import EngineOptions, check_path
from enginewright.runtime.plans import open_plan
from enginewright.runtime.speculation.config import SpeculativeConfig
from enginewright.runtime.speculation.draft import DraftProposer
from enginewright.runtime.speculation.ngram import NgramProposer
from enginewright.runtime.speculation.proposer import Proposer
from enginewright.runtime.speculation.speculator import Speculator
from enginewright.runtime.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def open_speculator(how: EngineOptions, info: EngineInfo, tokenizer: Tokenizer) -> Speculator:
    """What drafts for a target with this engine and tokenizer.

    Raises EnginewrightError if the target's engine cannot verify drafts or the draft's vocabulary
    is another one, ArtifactError if the draft does not load.
    """
    config = how.speculation
    assert config is not None
    if not info.steps.extend:
        raise EnginewrightError(
            "speculative_config: this engine computes one token of a row at a time (its steps have "
            "no extension), so that drafts cannot be checked; leave speculative_config out, or "
            "build the artifact for a target that extends"
        )
    if info.batch_invariant and not info.step_invariant:
        logger.warning(
            "speculative_config: in this plan, tokens that are computed together differ in the "
            "last bits from those that are computed one at a time; requests that must repeat "
            "(greedy ones, and those with a seed) are not speculated"
        )
    proposer: Proposer
    if config.method == "ngram":
        proposer = NgramProposer(*config.lookup)
    else:
        proposer = _open_draft(config, how, info, tokenizer)
    return Speculator(proposer, config.num_speculative_tokens)


def _open_draft(
    config: SpeculativeConfig, how: EngineOptions, info: EngineInfo, tokenizer: Tokenizer
) -> DraftProposer:
    try:
        place = find_artifact(
            check_path(config.model), revision=config.revision, precision=config.quantization
        )
        artifact = Artifact.open(place, how.verify)
        how.check_policy(artifact)
        _check_built(config, artifact)
        _check_vocabulary(artifact, info, tokenizer)
        engine, _ = open_plan(
            artifact,
            allow_native_code=how.allow_native_code,
            threads=how.threads,
            in_turns=True,
            limited=partial(_within, info),
        )
    except ArtifactError as error:
        raise type(error)(f"speculative_config's model cannot be loaded: {error}") from error
    try:
        return DraftProposer(engine, how.kv_cache_memory_bytes, info.kv_bytes_per_token)
    except EnginewrightError as error:
        engine.close()
        raise EnginewrightError(f"speculative_config's model: {error}") from error


def _check_built(config: SpeculativeConfig, draft: Artifact) -> None:
    asked = EngineOptions(quantization=config.quantization, revision=config.revision)
    try:
        asked.check_built(draft.manifest, draft.engine())
    except EnginewrightError as error:
        raise EnginewrightError(f"speculative_config: {error}") from error


def _within(target: EngineInfo, draft: EngineEntry) -> EngineEntry:
    """The draft's entry with no more rows, and none longer, than its target can have."""
    limits = replace(
        draft.limits,
        max_batch=min(draft.limits.max_batch, target.max_batch),
        max_context=min(draft.limits.max_context, target.max_context),
    )
    return replace(draft, limits=limits)


def _check_vocabulary(draft: Artifact, info: EngineInfo, tokenizer: Tokenizer) -> None:
    """A drafted id must mean the same to both."""
    again = "draft with an artifact of the same family, or with the method 'ngram'"
    size = draft.engine().vocab_size
    if size != info.vocab_size:
        raise EnginewrightError(
            f"speculative_config's model={str(draft.path)!r:.200} has a vocabulary of {size} "
            f"tokens, its target one of {info.vocab_size}: they must be the same; {again}"
        )
    theirs = Tokenizer.from_file(draft.file("tokenizer.json")).vocabulary
    ours = tokenizer.vocabulary
    if theirs != ours:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        differing = max(differing, abs(len(theirs) - len(ours)))
        raise EnginewrightError(
            f"speculative_config's model={str(draft.path)!r:.200} has another tokenizer than its "
            f"target: {differing} of {len(ours)} tokens differ; {again}"
        )
