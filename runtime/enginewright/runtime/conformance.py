"""How far an engine is from the model that it was built from, by stored reference values.

The reference file (npz, no pickles), for P prompts, G greedy tokens, W windows of T tokens, the K
likeliest tokens of each position, and N = W * (T - 1) predicted positions:

| array            | shape  | dtype   | meaning                                                    |
|------------------|--------|---------|------------------------------------------------------------|
| prompt_ids       | [P, *] | int32   | prompts, padded with -1                                    |
| greedy_ids       | [P, G] | int32   | what the reference generates greedily, EOS ignored         |
| greedy_margins   | [P, G] | float32 | reference's best logit minus its second, at each position  |
| text_ids         | [W, T] | int32   | windows of the bundled text                                |
| top_ids          | [N, K] | int32   | the reference's likeliest next tokens, best first          |
| top_logprobs     | [N, K] | float32 | their log probabilities                                    |
| label_logprobs   | [N]    | float32 | log probability of the text's own next token               |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.llm import LLM
from enginewright.runtime.sampling.params import SamplingParams

REFERENCE_FILE = "conformance/reference.npz"
TIE_MARGIN = 1e-4
"""Logit margin below which the reference itself does not decide between two tokens."""
CHUNK_TOLERANCE = 1e-3
"""Of logits in chunks beside those of one prefill: attention over a past sums in another order."""
TOP_K = 5
POSITIONS = 16
"""How many tokens of a window are told as one, where a measure is told by position."""
_CHUNK = 48
_STEPPED_TOKENS = 272
"""Tokens that are also computed one by one: somewhat more than attention sums at a time."""
_POSITIONS = 16
_DECODED_PROMPTS = 6
_DECODED_TOKENS = 8

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What the Hugging Face model answered; see the module's table."""

    prompt_ids: NDArray[np.int32]
    greedy_ids: NDArray[np.int32]
    greedy_margins: Floats
    text_ids: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: Floats
    label_logprobs: Floats

    def save(self, path: Path) -> None:
        """Write the file; equal references give equal bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read the file; raises ArtifactError if it is not one."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path}: no reference values can be read ({error})") from error

    def part(self, prompts: int, tokens: int) -> Reference:
        """The same text, but only the first prompts, and of each the first greedy tokens."""
        return replace(
            self,
            prompt_ids=self.prompt_ids[:prompts],
            greedy_ids=self.greedy_ids[:prompts, :tokens],
            greedy_margins=self.greedy_margins[:prompts, :tokens],
        )

    def prompts(self) -> list[list[int]]:
        """The prompts without their padding."""
        return [[int(token) for token in row if token >= 0] for row in self.prompt_ids]


@dataclass(frozen=True)
class Distance:
    """How far from the reference. KL is over its K likeliest tokens and the rest as one.

    By position: means over the windows of the text, POSITIONS at a time from their start.
    """

    greedy_agreement: float
    greedy_prompts_equal: int
    greedy_prompts: int
    greedy_ties: int
    top1_agreement: float
    topk_agreement: float
    mean_kl: float
    max_kl: float
    perplexity: float
    reference_perplexity: float
    kl_by_position: tuple[float, ...]
    top1_by_position: tuple[float, ...]

    @property
    def perplexity_increase(self) -> float:
        """Relative to the reference; negative if the engine's is lower."""
        return self.perplexity / self.reference_perplexity - 1


@dataclass(frozen=True)
class Measures(Distance):
    """And whether the engine gives the same in any batch, in any chunks, and token by token."""

    prefill_invariant: bool
    decode_invariant: bool
    chunk_difference: float
    step_difference: float


@dataclass(frozen=True)
class Row:
    """One measure beside its bound; a row without a bound is for information."""

    name: str
    value: float
    bound: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """The table of a conformance run."""

    measures: Distance
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def table(self) -> str:
        """The rows as text."""
        lines = [f"{'measure':<24}{'value':>14}  {'bound':<12} result"]
        for row in self.rows:
            result = ("ok" if row.passed else "MISSED") if row.bound else ""
            lines.append(f"{row.name:<24}{row.value:>14.6g}  {row.bound:<12} {result}".rstrip())
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        rows = [asdict(row) for row in self.rows]
        return {"passed": self.passed, "measures": asdict(self.measures), "rows": rows}


def measure(llm: LLM, reference: Reference) -> Measures:
    """Run the engine over the reference's prompts and text."""
    return Measures(
        **vars(measure_distance(llm, reference)),
        prefill_invariant=_prefill_invariant(llm, reference),
        decode_invariant=_decode_invariant(llm, reference),
        chunk_difference=_difference(llm, reference, _CHUNK),
        step_difference=_difference(llm, reference, 1, _STEPPED_TOKENS),
    )


def measure_distance(llm: LLM, reference: Reference, *, chunk: int | None = None) -> Distance:
    """How far the engine is from the reference; ``chunk``: tokens a step of the text."""
    return Distance(**_greedy(llm, reference), **_distributions(llm, reference, chunk))


def judge(
    measures: Distance, thresholds: Mapping[str, float], *, batch_invariant: bool = False
) -> Report:
    """Put each measure beside the bound that the recipe gives, where it gives one.

    An engine that declares itself batch invariant must be so.
    """
    m = measures
    declared = (
        ("greedy agreement", m.greedy_agreement, "min_greedy_agreement"),
        ("top-1 agreement", m.top1_agreement, "min_top1_agreement"),
        (f"top-{TOP_K} agreement", m.topk_agreement, "min_topk_agreement"),
        ("mean KL (nats)", m.mean_kl, "max_mean_kl"),
        ("max KL (nats)", m.max_kl, "max_kl"),
        ("perplexity change", abs(m.perplexity_increase), "max_perplexity_increase"),
    )
    rows = [_row(name, value, key, thresholds.get(key)) for name, value, key in declared]
    rows += [
        Row("perplexity", m.perplexity, "", True),
        Row("reference perplexity", m.reference_perplexity, "", True),
        Row("greedy ties", m.greedy_ties, "", True),
    ]
    if isinstance(m, Measures):
        rows += [
            _declared("prefill alone = batch", m.prefill_invariant, batch_invariant),
            _declared("decode alone = batch", m.decode_invariant, batch_invariant),
            _in_chunks(m.chunk_difference, batch_invariant),
            Row("stepped, max logit diff", m.step_difference, "", True),
        ]
    return Report(measures, tuple(rows))


def _row(name: str, value: float, key: str, bound: float | None) -> Row:
    if bound is None:
        return Row(name, value, "", True)
    at_least = key.startswith("min_")
    passed = value >= bound if at_least else value <= bound
    return Row(name, value, f"{'>=' if at_least else '<='} {bound:g}", bool(passed))


def _declared(name: str, measured: bool, declared: bool) -> Row:
    return Row(name, float(measured), "= 1" if declared else "", measured or not declared)


def _in_chunks(difference: float, declared: bool) -> Row:
    bound = f"<= {CHUNK_TOLERANCE:g}" if declared else ""
    passed = difference <= CHUNK_TOLERANCE or not declared
    return Row("chunked, max logit diff", difference, bound, passed)


def _greedy(llm: LLM, reference: Reference) -> dict[str, Any]:
    """Tokens equal up to the first difference; a difference at a tie ends a prompt as equal."""
    length = reference.greedy_ids.shape[1]
    params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
    outputs = llm.generate(reference.prompts(), params)
    agreed = ties = equal = 0
    for output, wanted, margins in zip(
        outputs, reference.greedy_ids, reference.greedy_margins, strict=True
    ):
        differing = np.flatnonzero(np.asarray(output.outputs[0].token_ids) != wanted)
        first = int(differing[0]) if differing.size else length
        tie = first < length and margins[first] < TIE_MARGIN
        ties += int(tie)
        equal += int(first == length or tie)
        agreed += length if tie else first
    total = reference.greedy_ids.size
    return {
        "greedy_agreement": agreed / total,
        "greedy_prompts_equal": equal,
        "greedy_prompts": len(outputs),
        "greedy_ties": ties,
    }


def _distributions(llm: LLM, reference: Reference, chunk: int | None) -> dict[str, Any]:
    windows = [_window(llm, reference, at, chunk) for at in range(len(reference.text_ids))]
    label_logprobs, kl, top1, topk = (np.concatenate(parts) for parts in zip(*windows, strict=True))
    return {
        "top1_agreement": float(np.mean(top1)),
        "topk_agreement": float(np.mean(topk)),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "kl_by_position": _by_position(kl, len(windows)),
        "top1_by_position": _by_position(top1, len(windows)),
        "perplexity": float(np.exp(-np.mean(label_logprobs, dtype=np.float64))),
        "reference_perplexity": float(np.exp(-np.mean(reference.label_logprobs, dtype=np.float64))),
    }


def _by_position(values: NDArray[Any], windows: int) -> tuple[float, ...]:
    """Means over windows of one length, and over POSITIONS tokens of them."""
    means = values.reshape(windows, -1).mean(axis=0, dtype=np.float64)
    starts = np.arange(0, len(means), POSITIONS)
    sums = np.add.reduceat(means, starts)
    return tuple((sums / np.diff([*starts, len(means)])).tolist())


def _window(
    llm: LLM, reference: Reference, window: int, chunk: int | None
) -> tuple[NDArray[Any], ...]:
    """What ``_compare`` gives for each predicted position of one window, a few at a time."""
    ids = reference.text_ids[window].astype(np.int64)
    first = window * (len(ids) - 1)
    logits = llm.logits(ids.tolist(), chunk=chunk)
    parts = [
        _compare(
            log_softmax(logits[at]),
            ids[1:][at],
            reference.top_ids[first:][at],
            reference.top_logprobs[first:][at],
        )
        for at in some_positions(len(ids) - 1)
    ]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _compare(
    ours: Floats, labels: NDArray[np.int64], top_ids: NDArray[np.int32], top_logprobs: Floats
) -> tuple[NDArray[Any], ...]:
    """Of each position: the label's log probability, KL, and agreement of the best 1 and TOP_K."""
    ranked = _best(ours, min(TOP_K, top_ids.shape[1]))
    return (
        np.take_along_axis(ours, labels[:, None], axis=1)[:, 0],
        _kl(top_logprobs, np.take_along_axis(ours, top_ids.astype(np.int64), axis=1)),
        ranked[:, 0] == top_ids[:, 0],
        _overlap(ranked, top_ids[:, : ranked.shape[1]]),
    )


def some_positions(count: int) -> Iterator[slice]:
    """The positions 0..count a few at a time: what is computed of logits is larger than they."""
    return (slice(start, min(start + _POSITIONS, count)) for start in range(0, count, _POSITIONS))


def _prefill_invariant(llm: LLM, reference: Reference) -> bool:
    """Whether each prompt has bitwise the same logits alone and in one ragged batch."""
    prompts = reference.prompts()[: llm.max_batch]
    together = zip(prompts, llm.batch_logits(prompts), strict=True)
    return all(np.array_equal(llm.logits(prompt), logits) for prompt, logits in together)


def _decode_invariant(llm: LLM, reference: Reference) -> bool:
    """Whether each prompt's greedy continuation has the same log probabilities, to the last bit."""
    prompts = reference.prompts()[: min(llm.max_batch, _DECODED_PROMPTS)]
    params = SamplingParams(temperature=0, max_tokens=_DECODED_TOKENS, ignore_eos=True, logprobs=1)
    together = llm.generate(prompts, params)
    alone = [llm.generate(prompt, params)[0] for prompt in prompts]
    return all(
        a.outputs[0].logprobs == b.outputs[0].logprobs for a, b in zip(alone, together, strict=True)
    )


def _difference(llm: LLM, reference: Reference, chunk: int, length: int | None = None) -> float:
    """The largest difference of a logit between a window in one prefill and in chunks."""
    ids = reference.text_ids[0, :length].tolist()
    whole, chunked = llm.logits(ids), llm.logits(ids, chunk=chunk)
    return max(float(np.abs(whole[at] - chunked[at]).max()) for at in some_positions(len(ids)))


def _kl(reference: Floats, ours: Floats) -> Floats:
    """KL(reference || ours) in nats, [N], over the listed tokens and the rest as one bucket."""
    p, q = np.exp(reference, dtype=np.float64), np.exp(ours, dtype=np.float64)
    listed = np.sum(p * (reference.astype(np.float64) - ours), axis=1)
    floor = 1e-12
    rest_p = np.maximum(1 - p.sum(axis=1), 0)
    rest_q = np.maximum(1 - q.sum(axis=1), floor)
    rest = np.where(rest_p > floor, rest_p * np.log(np.maximum(rest_p, floor) / rest_q), 0)
    divergence: Floats = np.maximum(listed + rest, 0).astype(np.float32)
    return divergence


def _overlap(ours: NDArray[np.int64], theirs: NDArray[np.int32]) -> NDArray[np.float64]:
    shared: NDArray[np.float64] = (ours[:, :, None] == theirs[:, None, :]).any(axis=2).mean(axis=1)
    return shared


def _best(values: Floats, k: int) -> NDArray[np.int64]:
    """Indices of the k largest of each row, best first."""
    part = np.argpartition(values, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(values, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def log_softmax(logits: Floats) -> Floats:
    """Log probabilities of each row, float32, summed in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    logprobs: Floats = (shifted - np.log(total)).astype(np.float32)
    return logprobs
