"""The exception tree: every error that a user can cause derives from EnginewrightError.

EnginewrightError
├── ArgumentError (TypeError) an argument that LLM does not have
├── ArtifactError             the artifact's folder cannot be used
│   ├── ArtifactNotFoundError     there is no artifact at the path
│   ├── SchemaVersionError        written by another version of the builder
│   ├── IntegrityError            a file is missing, truncated or altered
│   ├── PolicyError               the policy file does not let it be used here
│   │   └── SignatureError            no signature on it is of a trusted key
│   └── TargetError               no engine in it can run here
│       └── NativeCodeError           its library of operators cannot be loaded
├── RequestError (ValueError) one request is wrong; other requests are not harmed
│   ├── SamplingParamsError       a sampling parameter is out of range
│   ├── PromptError               empty, not text, or token ids out of the vocabulary
│   ├── ContextLengthError        the prompt does not fit the engine's limit
│   └── ChatTemplateError         template missing, refused by the sandbox, or out of bounds
├── OverloadedError           an AsyncLLM has as many requests as it takes
├── MissingDependencyError    an extra is not installed
├── SettingsError             a policy, a gate or a key is wrong; names the file and the field
├── RegistryError             a registry cannot be reached, or refuses, or has something else
├── DeviceError               the GPU, its driver or its memory are not what the engine needs
└── BuildError                a build cannot go on
    ├── RecipeError               the recipe is wrong; names the field's path
    ├── SourceError               the checkpoint is missing, incomplete or not readable
    ├── UnsupportedModelError     architecture or quantization outside what can be built
    └── ConformanceError          the built engine missed a threshold
"""

from __future__ import annotations

from typing import Literal

DeviceCode = Literal[
    "no_driver",
    "no_device",
    "capability",
    "driver_version",
    "library_version",
    "plugin_abi",
    "plugin_kernels",
    "out_of_memory",
    "engine_refused",
    "device_failed",
]
"""What is the matter with a device; ``enginewright doctor`` finds the same codes."""


class EnginewrightError(Exception):
    """Base of every error that Enginewright raises for a user's mistake."""


class ArgumentError(EnginewrightError, TypeError):
    """An argument that LLM does not have; the message says why, or names the nearest one."""


class ArtifactError(EnginewrightError):
    """The artifact's folder cannot be used."""


class ArtifactNotFoundError(ArtifactError):
    """There is no artifact at the path."""


class SchemaVersionError(ArtifactError):
    """The manifest was written for a schema that this runtime does not read."""


class IntegrityError(ArtifactError):
    """A file of the artifact is missing, truncated or altered."""


class PolicyError(ArtifactError):
    """The policy does not let the artifact be used here."""


class SignatureError(PolicyError):
    """No signature on the artifact was made by a trusted key for this very manifest."""


class TargetError(ArtifactError):
    """No engine of the artifact can run with what is installed here."""


class NativeCodeError(TargetError):
    """A library of operators that cannot be loaded here."""


class RequestError(EnginewrightError, ValueError):
    """One request is wrong; it fails alone."""


class SamplingParamsError(RequestError):
    """A sampling parameter has an illegal value."""


class PromptError(RequestError):
    """The prompt is empty, of a wrong type, or holds ids outside the vocabulary."""


class ContextLengthError(RequestError):
    """The prompt leaves no room for a token within the engine's max_context."""


class ChatTemplateError(RequestError):
    """The chat template is missing, refused by the sandbox, wrong, or out of bounds."""


class OverloadedError(EnginewrightError):
    """An AsyncLLM has as many unfinished requests as it takes; try again when some have ended."""


class MissingDependencyError(EnginewrightError):
    """A package of an optional extra is not installed."""


class SettingsError(EnginewrightError):
    """A file that the user gave (a policy, a gate, a key) is wrong; the message names the field."""


class RegistryError(EnginewrightError):
    """A registry cannot be reached, refuses, or holds something else than an artifact.

    ``status``: of HTTP, where it answered with one that is none of success.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotInRegistryError(RegistryError):
    """A registry answers that it has no manifest of the name; of a damaged artifact it has one."""


class DeviceError(EnginewrightError):
    """The GPU cannot run the engine, or failed; the message says what was found and needed."""

    def __init__(self, message: str, code: DeviceCode = "device_failed") -> None:
        super().__init__(message)
        self.code: DeviceCode = code


class BuildError(EnginewrightError):
    """A build cannot go on; the previous artifact is untouched."""


class RecipeError(BuildError):
    """The recipe is wrong; the message holds the field's path and the legal values."""


class SourceError(BuildError):
    """The checkpoint is missing, incomplete, damaged or of an unknown kind."""


class UnsupportedModelError(BuildError):
    """The architecture, or the source's quantization, is outside what can be built."""


class ConformanceError(BuildError):
    """The built engine missed a threshold of its recipe; the message holds the table."""
