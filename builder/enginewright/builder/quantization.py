"""Rounding of matrices to blocks of small integers, and carrying of blocks that are stored already.

Blocks run along K; what they mean is in the table of ``weights.py``. Scales that are found here are
float16 values.

| function      | value                     | found by                                             |
|---------------|---------------------------|------------------------------------------------------|
| quantize_int8 | scale * (code - 128)      | the largest magnitude of each block                  |
| quantize_int4 | scale * (code - zero)     | a search for the scale and zero of the least squares |
|  "  symmetric | scale * (code - 8)        | a search for the scale, of either sign               |
| carry         | as the source stores them | nothing: the values are exactly those of the source  |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from enginewright.builder.weights import Blocks, Weight, stack
from enginewright.runtime.errors import SourceError

Note = Callable[[str, int, float | None], None]
"""Hears of a matrix: its name, its bits, and the relative error of its values; None: carried."""
BLOCK_SIZE = 32
MIN_BLOCK_SIZE = 16
MAX_BLOCK_SIZE = 256
_CHUNK_VALUES = 1 << 20
_LARGEST_VALUE = 1e5  # its scale over a block is a float16 still
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def block_size_for(inputs: int) -> int | None:
    """The block size for a matrix of that many inputs; None if no block size divides them."""
    return next((size for size in (BLOCK_SIZE, MIN_BLOCK_SIZE) if inputs % size == 0), None)


def quantize(
    weight: Weight,
    bits: int,
    size: int,
    name: str,
    *,
    symmetric: bool = False,
    note: Note | None = None,
) -> Blocks:
    """A weight [N, K] rounded to 8 or 4 bits in blocks of ``size``, read a few rows at a time.

    ``note`` hears of the error.
    """
    four = partial(quantize_int4, symmetric=symmetric)
    rounding = quantize_int8 if bits == 8 else four
    parts, error, norm = [], 0.0, 0.0
    for values in checked_rows(weight, name):
        parts.append(rounding(values, size))
        if note is not None:
            error += _square(parts[-1].dequantize() - values)
            norm += _square(values)
    if note is not None:
        note(name, bits, (error / norm) ** 0.5 if norm else 0.0)
    rounded = stack(parts)
    codes = rounded.codes()
    return replace(rounded, codes=lambda: codes)


def _square(values: NDArray[np.float32]) -> float:
    return float(np.vdot(values, values))


def checked_rows(weight: Weight, name: str) -> Iterator[NDArray[np.float32]]:
    """A matrix a few rows at a time; raises SourceError for values that no weight has."""
    step = max(1, 4 * _CHUNK_VALUES // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        values = weight.rows(start, min(start + step, weight.shape[0]))
        if not np.abs([values.min(), values.max()]).max() < _LARGEST_VALUE:
            raise SourceError(
                f"{name}: holds values that are not finite, or of {_LARGEST_VALUE:g} and more, so "
                f"the checkpoint is damaged; fetch it again, or write it anew in float32 or "
                f"bfloat16"
            )
        yield values


def quantize_int8(values: NDArray[np.float32], block_size: int = BLOCK_SIZE) -> Blocks:
    """Symmetric: the 255 steps of a block span its largest magnitude on both sides."""
    blocks = values.reshape(values.shape[0], -1, block_size)
    scales = _halves_above(np.abs(blocks).max(axis=-1) / np.float32(127))
    steps = np.clip(np.rint(blocks * _inverse(scales)[..., None]), -127, 127)
    codes = (steps + 128).astype(np.uint8).reshape(values.shape)
    return Blocks(8, block_size, lambda: codes, scales)


def quantize_int4(
    values: NDArray[np.float32], block_size: int = BLOCK_SIZE, *, symmetric: bool = False
) -> Blocks:
    """For each block the scale and integer zero, or 8, of the least square error found."""
    rows, inputs = values.shape
    codes = np.empty((rows, inputs), np.uint8)
    scales = np.empty((rows, inputs // block_size), np.float32)
    zeros = np.empty(scales.shape, np.uint8)
    step = max(1, _CHUNK_VALUES // inputs)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        found = _Search(values[part].reshape(-1, block_size), symmetric=symmetric)
        scales[part] = found.scale.reshape(-1, scales.shape[1])
        zeros[part] = found.zero.astype(np.uint8).reshape(-1, scales.shape[1])
        codes[part] = found.codes().reshape(-1, inputs)
    return Blocks(4, block_size, lambda: codes, scales, None if symmetric else zeros)


class _Search:
    """The best 4-bit grid for each of many blocks [M, size].

    For the integers q that a trial gives, the best scale is <w, q> / <q, q>, and the squared error
    is then |w|^2 - <w, q>^2 / <q, q>: so the trial with the largest last term is kept.
    """

    def __init__(self, blocks: NDArray[np.float32], *, symmetric: bool = False) -> None:
        self._blocks = blocks
        self.scale = np.zeros(len(blocks), np.float32)
        self.zero = np.zeros(len(blocks), np.float32)
        self._gain = np.full(len(blocks), -1, np.float32)
        if symmetric:
            self._try_symmetric()
        else:
            self._try_zeros()
        for _ in range(2):
            self._try(_inverse(self.scale), self.zero)
        self.scale = self.scale.astype(np.float16).astype(np.float32)

    def _try_zeros(self) -> None:
        blocks = self._blocks
        low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
        for shrink in _SHRINKS:
            inverse = _inverse((high - low) * np.float32(shrink / 15))
            # Clipping is taken from both ends alike, so the zero stays where it was.
            self._try(inverse, np.clip(np.rint(-low * inverse * np.float32(shrink)), 0, 15))
        for shift in (-1, 1):
            self._try(_inverse(self.scale), np.clip(self.zero + np.float32(shift), 0, 15))

    def _try_symmetric(self) -> None:
        """The largest magnitude at either end of the steps, which are -8 to 7."""
        at = np.abs(self._blocks).argmax(axis=1)
        extreme = np.take_along_axis(self._blocks, at[:, None], axis=1)[:, 0]
        for shrink in _SHRINKS:
            for end in (-8, 7):
                inverse = _inverse(extreme * np.float32(shrink / end))
                self._try(inverse, np.full(len(extreme), 8, np.float32))

    def codes(self) -> NDArray[np.uint8]:
        """The blocks on the grid that was found."""
        steps = self._steps(_inverse(self.scale), self.zero)
        return (steps + self.zero[:, None]).astype(np.uint8)

    def _try(self, inverse: NDArray[np.float32], zero: NDArray[np.float32]) -> None:
        steps = self._steps(inverse, zero)
        along = np.einsum("mk,mk->m", self._blocks, steps)
        square = np.einsum("mk,mk->m", steps, steps)
        scale = along * _inverse(square)
        better = scale * along > self._gain
        self.scale[better], self.zero[better] = scale[better], zero[better]
        self._gain[better] = (scale * along)[better]

    def _steps(
        self, inverse: NDArray[np.float32], zero: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        steps = self._blocks * inverse[:, None]
        np.rint(steps, out=steps)
        return np.clip(steps, -zero[:, None], (15 - zero)[:, None], out=steps)


def carry(weight: Weight, *bits: int) -> Blocks | None:
    """The blocks that the source stores, values unchanged, in the first of the bits that fit."""
    return fit(weight.blocks(), *bits)


def fit(stored: Blocks | None, *bits: int) -> Blocks | None:
    """The same values in 4 or 8 bits, and in a block size that engines take.

    None if there are more bits, or if no block size from 16 to 256 expresses them.
    """
    if stored is None:
        return None
    size = min(stored.block_size & -stored.block_size, MAX_BLOCK_SIZE)
    taken = next((count for count in bits if stored.bits <= count), None)
    if taken is None or size < MIN_BLOCK_SIZE:
        return None
    return _widen(_split(stored, size), taken)


def _split(stored: Blocks, size: int) -> Blocks:
    """Smaller blocks that repeat the scale of the block they come from."""
    times = stored.block_size // size
    if times == 1:
        return stored
    return stored.each(lambda part: np.repeat(part, times, axis=1), block_size=size)


def _widen(stored: Blocks, bits: int) -> Blocks:
    """The same steps in more bits; integer zeros of blocks, or the middle code, in the middle.

    Engines round activations and multiply them by (code - middle): the smaller those are, the less
    of that rounding reaches the product.
    """
    if stored.bits == bits:
        return stored
    middle = 1 << (bits - 1)
    shift = middle - (1 << (stored.bits - 1))
    if stored.zero_points is None:
        return replace(
            stored,
            bits=bits,
            codes=lambda: stored.codes() + np.uint8(shift),
            uniform_zero=stored.zero + shift,
        )
    zeros = stored.zero_points

    def codes() -> NDArray[np.uint8]:
        each = np.repeat(zeros, stored.block_size, axis=1)
        return stored.codes() - each + np.uint8(middle)  # modulo 256, and within it at the end

    return replace(stored, bits=bits, codes=codes, zero_points=None, uniform_zero=middle)


def _halves_above(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The least float16 value from each scale on, so that no code is cut off."""
    halves = scales.astype(np.float16)
    low = halves.astype(np.float32) < scales
    return np.where(low, np.nextafter(halves, np.float16(np.inf)), halves).astype(np.float32)


def _inverse(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / x, and 0 where that is not finite: a block of zeros, or one too small to matter."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / values
    return np.where(np.isfinite(inverse), inverse, np.float32(0))
