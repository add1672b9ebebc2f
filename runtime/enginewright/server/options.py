"""What may be set of a server: by flags of ``enginewright serve``, or by the same names in YAML.

Imports nothing of the extra ``serve``, so that the command's help needs none of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from enginewright.runtime.errors import EnginewrightError

T = TypeVar("T")

ContentFormat = Literal["auto", "string", "openai"]
Fingerprint = Literal["engine", "none"]


def setting(default: T, help: str) -> T:
    """A field with the line that the command's help has for it."""
    made: T = field(default=default, metadata={"help": help})
    return made


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """One artifact to serve; fields that are LLM's have its meanings."""

    model: str
    """The artifact, or what one was built from on this machine."""
    served_model_name: Sequence[str] = setting(
        (), "A name that clients may use; several are aliases, the first is the one in answers."
    )
    runner: str = setting("auto", "auto or generate: there are generative models alone.")
    max_model_len: int | None = setting(None, "Tokens of prompt and output together.")
    max_num_seqs: int | None = setting(None, "Requests that run together; more wait.")
    max_num_batched_tokens: int | None = setting(None, "Tokens of prompts in one step.")
    kv_cache_memory_bytes: int | None = setting(
        None, "Bound of the cache; too little for one request of --max-model-len is refused."
    )
    enable_prefix_caching: bool = setting(True, "Compute once what prompts have in common.")
    threads: int | None = setting(None, "1 to 256; by default all that the process may use.")
    target: str | None = setting(None, "Which of the artifact's targets runs.")
    plan: str | None = setting(None, "Which of its plans runs.")
    allow_native_code: bool | None = setting(
        None, "Run the artifact's own operators whoever compiled them, or never."
    )
    seed: int | None = setting(None, "Makes requests without a seed repeatable, in their order.")
    generation_config: str = setting(
        "auto", "Where sampling defaults come from: auto (the model), vllm (none), or a folder."
    )
    override_generation_config: Mapping[str, Any] | None = setting(
        None, "Sampling defaults that go over these."
    )
    speculative_config: Mapping[str, Any] | None = setting(None, "How tokens are drafted.")
    logits_processors: Sequence[str] = setting((), "Applied to every request's logits.")
    policy: Mapping[str, Any] | None = setting(
        None, "Which artifacts may be used, and whether their code may run."
    )
    max_logprobs: int = setting(20, "Most log probabilities of a position; -1: all.")
    chat_template: str | None = setting(
        None, "In place of the model's: a path, a template, or a built-in name."
    )
    chat_template_content_format: ContentFormat = setting(
        "auto", "How the template gets contents: auto, string or openai."
    )
    response_role: str = setting("assistant", "The role of answers.")
    tool_call_parser: str | None = setting(
        None, "How the model writes tool calls; by default seen from its template. none: not read."
    )
    reasoning_parser: str | None = setting(
        None, "How the model marks its thoughts; by default seen from its template. none: not read."
    )
    max_num_queued_reqs: int = setting(
        256, "Outputs that may wait beyond those that run; more are refused with 503."
    )

    def __post_init__(self) -> None:
        _check_kinds(self)
        _at_least(self, 0, "max_num_queued_reqs")
        for name in self.served_model_name:
            if not name.strip():
                raise EnginewrightError("served_model_name is empty: give the name for clients")

    def engine_arguments(self) -> dict[str, Any]:
        """What AsyncLLM is opened with."""
        given = {name: value for name, value in vars(self).items() if name not in _OF_SERVER}
        return given | {"logits_processors": list(self.logits_processors) or None}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """A whole server. Times are seconds, sizes bytes."""

    models: Sequence[ModelOptions]
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "Port to listen on; 0: a free one.")
    uds: str | None = setting(None, "A Unix socket to listen on in place of host and port.")
    root_path: str = setting("", "The path under which a proxy serves this.")
    api_key: Sequence[str] = setting((), "A key that clients must send; several are allowed.")
    api_key_file: str | None = setting(None, "A file with one key a line.")
    allowed_origins: Sequence[str] = setting((), "CORS: origins that may call; none by default.")
    allowed_methods: Sequence[str] = setting(("*",), "CORS: methods.")
    allowed_headers: Sequence[str] = setting(("*",), "CORS: headers.")
    allow_credentials: bool = setting(False, "CORS: cookies and the like.")
    ssl_keyfile: str | None = setting(None, "TLS: the private key.")
    ssl_certfile: str | None = setting(None, "TLS: the certificate.")
    ssl_ca_certs: str | None = setting(None, "TLS: authorities of clients' certificates.")
    ssl_cert_reqs: int = setting(0, "TLS: 2 demands a certificate of the client.")
    max_body_bytes: int = setting(32 * 2**20, "Largest body of a request.")
    max_prompts: int = setting(1024, "Most prompts of one request.")
    max_n: int = setting(128, "Most outputs of one prompt.")
    body_timeout: float = setting(
        60.0, "Time in which a request's body must come, at most request_timeout; 0: no limit."
    )
    request_timeout: float = setting(0.0, "Longest time of a request; 0: no limit.")
    drain_timeout: float = setting(30.0, "Time that running requests have after SIGTERM; 0: none.")
    timeout_keep_alive: int = setting(5, "Time that an idle connection is kept.")
    sse_keep_alive_interval: float = setting(0.0, "Comments in idle streams; 0: none.")
    trust_request_chat_template: bool = setting(False, "Allow chat_template in requests.")
    enable_force_include_usage: bool = setting(False, "Usage in every stream, on each chunk.")
    enable_prompt_tokens_details: bool = setting(False, "Tell in usage what the cache had.")
    enable_tokenizer_info_endpoint: bool = setting(True, "Serve /tokenizer_info.")
    enable_request_id_headers: bool = setting(False, "Answer with X-Request-Id.")
    enable_log_requests: bool = setting(False, "Log prompts and parameters of requests.")
    access_log: bool = setting(True, "Log a line a request, without prompts.")
    disable_docs: bool = setting(False, "Serve neither /docs nor /openapi.json.")
    fingerprint: Fingerprint = setting("engine", "system_fingerprint of answers: engine or none.")
    log_level: str = setting("info", "Of the server: critical, error, warning, info, debug.")

    def __post_init__(self) -> None:
        if not self.models:
            raise EnginewrightError("there is no model to serve: give an artifact")
        _check_kinds(self)
        _at_least(self, 0, "port", "body_timeout", "request_timeout")
        _at_least(self, 0, "drain_timeout", "sse_keep_alive_interval")
        _at_least(self, 1, "max_body_bytes", "max_prompts", "max_n", "timeout_keep_alive")
        if self.port > 65535:
            raise EnginewrightError(f"port={self.port} is not legal: it must be 0 to 65535")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise EnginewrightError("ssl_keyfile and ssl_certfile go together: give both")
        if self.log_level not in LOG_LEVELS:
            legal = ", ".join(LOG_LEVELS)
            raise EnginewrightError(f"log_level={self.log_level!r:.80}: legal are {legal}")

    @property
    def longest_upload(self) -> float:
        """Seconds in which a body must come; 0: no limit."""
        return min(filter(None, (self.body_timeout, self.request_timeout)), default=0.0)

    @classmethod
    def of(cls, models: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Self:
        """From plain data; settings of models hold for each that does not say otherwise."""
        ours, theirs = field_names(cls), field_names(ModelOptions)
        for name in settings:
            if name not in ours and name not in theirs:
                raise EnginewrightError(f"{name!r:.80} is no setting of a server{_near(name)}")
        shared = {name: value for name, value in settings.items() if name in theirs}
        own = {name: value for name, value in settings.items() if name in ours}
        if len(models) > 1 and shared.get("served_model_name"):
            raise EnginewrightError(
                "served_model_name with several artifacts: give each its own as NAME=ARTIFACT, or "
                "under models: in a config file"
            )
        made = [ModelOptions(**_model(each, shared, theirs)) for each in models]
        return cls(models=tuple(made), **_frozen(own))


_OF_SERVER = frozenset(
    {
        "model",
        "served_model_name",
        "chat_template_content_format",
        "response_role",
        "tool_call_parser",
        "reasoning_parser",
        "max_num_queued_reqs",
    }
)
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


def field_names(options: type[Any]) -> frozenset[str]:
    """Of all settings; ``models`` and ``model`` are given otherwise."""
    return frozenset(each.name for each in dataclasses.fields(options)) - {"models", "model"}


def _model(
    given: Mapping[str, Any], shared: Mapping[str, Any], legal: frozenset[str]
) -> dict[str, Any]:
    unknown = given.keys() - legal - {"model"}
    if unknown or "model" not in given:
        raise EnginewrightError(
            f"models: {dict(given)!r:.200} is not legal: each has model, and may have "
            f"{', '.join(sorted(legal))}"
        )
    return _frozen({**shared, **given})


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples; one text where several may be, as a tuple of it."""
    several = {"served_model_name", "api_key", "logits_processors"}
    several |= {"allowed_origins", "allowed_methods", "allowed_headers"}
    found = dict(given)
    for name in several & found.keys():
        value = found[name]
        found[name] = (value,) if isinstance(value, str) else tuple(value or ())
    return found


_KINDS: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "Sequence[str]": (tuple,),
    "Mapping[str, Any]": (Mapping,),
    "ContentFormat": (str,),
    "Fingerprint": (str,),
}
_LEGAL = {
    "chat_template_content_format": ("auto", "string", "openai"),
    "fingerprint": ("engine", "none"),
}


def _check_kinds(options: ModelOptions | ServeOptions) -> None:
    """A config file may hold anything."""
    for each in dataclasses.fields(options):
        value, (kind, *other) = getattr(options, each.name), str(each.type).split(" | ")
        if kind == "Sequence[ModelOptions]" or (value is None and other):
            continue
        fits = isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "bool")
        if fits and kind == "Sequence[str]":
            fits = all(isinstance(item, str) for item in value)
        if not fits or (each.name in _LEGAL and value not in _LEGAL[each.name]):
            legal = " or ".join(map(repr, _LEGAL.get(each.name, (kind,))))
            raise EnginewrightError(f"{each.name}={value!r:.80} is not legal: it must be {legal}")


def _at_least(options: ModelOptions | ServeOptions, lowest: int, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not lowest <= value < float("inf"):
            raise EnginewrightError(f"{name}={value} is not legal: it must be at least {lowest}")


def _near(name: str) -> str:
    import difflib

    known = sorted(field_names(ServeOptions) | field_names(ModelOptions))
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"
