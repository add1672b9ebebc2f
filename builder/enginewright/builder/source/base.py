"""Source: what a build reads of a model, whatever files it lies in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from enginewright.builder.source.hashes import source_digest
from enginewright.builder.source.sizes import check_sizes
from enginewright.builder.source.token_ids import check_ids, read_ids
from enginewright.builder.source.tokenizer import SourceTokenizer
from enginewright.builder.weights import Weight
from enginewright.runtime.errors import SourceError, UnsupportedModelError

SourceKind = Literal["checkpoint", "gguf", "package", "hub"]

# Names that Hugging Face renames on loading, by architecture: module's prefix, checkpoint's.
_RENAMED = {"GPTNeoXForCausalLM": (("lm_head.", "embed_out."),)}


@dataclass(frozen=True)
class Origin:
    """Where a source came from, as the manifest says it; ``location`` is for errors alone."""

    kind: SourceKind
    reference: str
    location: Path
    revision: str | None = None


@dataclass(frozen=True)
class SourceFiles:
    """Files by a name that does not depend on the machine; ``weights`` names those of weights."""

    paths: Mapping[str, Path]
    weights: frozenset[str]


class Source(ABC):
    """One model: its config, its weights by the names they are stored under, its tokenizer.

    Opening a source reads headers and small files only; weights stay mapped on disk until a
    Weight is asked for rows.
    """

    def __init__(
        self,
        origin: Origin,
        config: Mapping[str, Any],
        weights: Mapping[str, Weight],
        files: SourceFiles,
        tokenizer: SourceTokenizer,
    ) -> None:
        self.origin = origin
        self.config = dict(config)
        """The content of Hugging Face's config.json, without quantization_config."""
        self.weights = weights
        """Stored tensors by Hugging Face's names; ``weight`` also resolves prefixes and ties."""
        self.tokenizer = tokenizer
        self._files = files
        if self._stored_untied():
            self.config["tie_word_embeddings"] = False

    @property
    def kind(self) -> SourceKind:
        return self.origin.kind

    @property
    def reference(self) -> str:
        return self.origin.reference

    @property
    def revision(self) -> str | None:
        return self.origin.revision

    @cached_property
    def digest(self) -> str:
        """``sha256:...`` over config, weights, tokenizer, template and generation config."""
        return source_digest(self._files.paths)

    @cached_property
    def stored_bytes(self) -> int:
        """What the files of weights take on disk."""
        return sum(self._files.paths[name].stat().st_size for name in self._files.weights)

    @cached_property
    def architecture(self) -> str:
        """The class in transformers, as the config names it."""
        claimed = self.config.get("architectures") or []
        if not isinstance(claimed, list) or not all(isinstance(name, str) for name in claimed):
            raise SourceError(
                f"{self.origin.location}: config: architectures {claimed!r:.80} is not legal: it "
                f'must be a list with the name of the model\'s class, such as ["LlamaForCausalLM"]'
            )
        by_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(self.config.get("model_type")))
        name = claimed[0] if claimed else by_type
        if name is None:
            raise UnsupportedModelError(
                f"{self.origin.location}: config names no architecture and its model_type "
                f"{self.config.get('model_type')!r} is no causal language model of transformers "
                f"{transformers.__version__}"
            )
        return name

    def model_config(self) -> PreTrainedConfig:
        """The config as transformers' object, with the defaults of its class."""
        model_type = str(self.config.get("model_type"))
        if model_type not in CONFIG_MAPPING:
            raise UnsupportedModelError(
                f"{self.origin.location}: model_type {model_type!r} is unknown to transformers "
                f"{transformers.__version__} (architecture {self.architecture}); code shipped "
                f"inside a checkpoint is never run"
            )
        config_class = CONFIG_MAPPING[model_type]
        check_sizes(self.origin.location, self.config, config_class.attribute_map)
        read_ids(f"{self.origin.location}: config: eos_token_id", self.config.get("eos_token_id"))
        try:
            return config_class.from_dict(dict(self.config))
        except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise SourceError(
                f"{self.origin.location}: the config is not a legal {model_type} config: "
                f"{' '.join(str(error).split())}"
            ) from error

    @property
    def positions(self) -> int | None:
        """How many positions the model was made for, if the config says."""
        found = getattr(self.model_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def generation_config(self) -> dict[str, Any]:
        """The content of generation_config.json; empty if there is none."""
        return dict(self.tokenizer.generation_config)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The union over config, generation config and tokenizer, sorted.

        Raises SourceError for what is no id, or one that the model can never write.
        """
        stated = {
            "config: eos_token_id": self.config.get("eos_token_id"),
            "generation config: eos_token_id": self.generation_config.get("eos_token_id"),
            "tokenizer: eos_token": self.tokenizer.eos_token_id,
        }
        places = {f"{self.origin.location}: {name}": value for name, value in stated.items()}
        found = {where: read_ids(where, value) for where, value in places.items()}
        vocab_size = self.model_config().vocab_size
        for where, ids in found.items():
            check_ids(where, ids, vocab_size)
        return tuple(sorted(set().union(*found.values())))

    @cached_property
    def bos_token_id(self) -> int | None:
        """The tokenizer's; else what the config says."""
        stated: int | None = self.tokenizer.bos_token_id
        return self.config.get("bos_token_id") if stated is None else stated

    def check(self) -> None:
        """Raise SourceError for what would fail late in a build, or in the runtime only: ids of
        end tokens, the generation config, the chat template.
        """
        _ = self.eos_token_ids
        self.tokenizer.check(self.origin.location)

    def write_tokenizer(self, folder: Path) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja
        and generation_config.json into the folder; returns the names of what was written.
        """
        return self.tokenizer.write(folder)

    def weight(self, name: str) -> Weight:
        """The weight of a parameter of ``AutoModelForCausalLM``; raises SourceError if missing.

        A checkpoint may lack, or have, the base model's prefix, and may hold only one of two tied
        parameters.
        """
        for candidate in self._candidates(name):
            if candidate in self.weights:
                return self.weights[candidate]
        raise SourceError(
            f"{self.origin.location}: the weight {name} of {self.architecture} is missing; the "
            f"config and the weights do not belong together, or a file of the checkpoint is"
        )

    @abstractmethod
    def reference_model(self) -> PreTrainedModel:
        """The oracle: transformers' own model in float32, in eval mode."""

    def _candidates(self, name: str) -> Iterator[str]:
        yield from self._spellings(name)
        if self.model_config().tie_word_embeddings:
            for tied, owner in self._ties().items():
                if name in (tied, owner):
                    yield from self._spellings(owner if name == tied else tied)

    def _spellings(self, name: str) -> Iterator[str]:
        """The names under which a checkpoint may hold a parameter."""
        yield name
        prefix = f"{getattr(self._model_class(), 'base_model_prefix', '')}."
        yield name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        for ours, theirs in _RENAMED.get(self.architecture, ()):
            if name.startswith(ours):
                yield theirs + name.removeprefix(ours)

    def _model_class(self) -> Any:
        return getattr(transformers, self.architecture, None)

    def _ties(self) -> Mapping[str, str]:
        """Tied parameters of the architecture: the one that is tied -> the one that owns."""
        ties = getattr(self._model_class(), "_tied_weights_keys", None)
        return ties if isinstance(ties, Mapping) else {}

    def _stored_untied(self) -> bool:
        """Whether both of two tied weights are stored and differ: then transformers ties nothing,
        whatever the config says.
        """
        if not self.config.get("tie_word_embeddings", True):
            return False
        for tied, owner in self._ties().items():
            pair = [
                next((self.weights[n] for n in self._spellings(name) if n in self.weights), None)
                for name in (tied, owner)
            ]
            if pair[0] is not None and pair[1] is not None and _differ(pair[0], pair[1]):
                return True
        return False


def _differ(one: Weight, other: Weight, chunk: int = 4096) -> bool:
    if one.shape != other.shape:
        return True
    return any(
        (one.rows(row, row + chunk) != other.rows(row, row + chunk)).any()
        for row in range(0, one.shape[0], chunk)
    )
