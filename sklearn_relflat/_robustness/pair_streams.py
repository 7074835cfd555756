"""Random numbers of pairs of perturbations.

The numbers of pair k come from a generator of its own, which is read sample after
sample: the same seed gives sample i the same perturbations in every model with the same
features, whatever the batches are (on a CPU).

Wide features share numbers: drawing them would take as long as what they are for. Four
pairs turn one draw g by shifts with signs, Q g, where Q is a permutation times a
diagonal of random signs, the same for all samples. Q is orthogonal, so that each pair
is Haar. It leaves pairs uncorrelated to second order: for an even function with the
Hessian H the covariance given Q is 2 tr(H Q^T H Q), up to what the fixed norm takes
off, and the random shift and signs make its mean zero and its size
O(1 / sqrt(m)) of the variance 2 tr(H^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from sklearn_relflat._robustness.matrix_distribution import RandomSource

# torch's generator on a CPU fills blocks of this size alike wherever they begin.
_BLOCK = 16
# Features from which on pairs share a draw, and how many do.
_WIDE = 256
_SHARED_BY = 4


def _seed_of(seed: int, pair: int) -> int:
    """Seed of one pair."""
    return (seed + 0x9E3779B9 * pair) % 2**32


class PairStream(RandomSource):
    """Standard normal numbers of one pair, sample after sample.

    Parameters
    ----------
    seed : int
        Seed of all pairs.
    pair : int
        Number of the pair.
    like : Tensor
        Has the dtype and device of the numbers.
    """

    def __init__(self, seed: int, pair: int, like: Tensor) -> None:
        super().__init__(_seed_of(seed, pair), like)
        self._buffer = torch.empty(0, dtype=torch.float32, device=like.device)

    def normal(self, *shape: int) -> Tensor:
        """Draw numbers of shape (n_samples, ...); they last until the next call."""
        n, rest = shape[0], math.prod(shape[1:])
        width = -(-rest // _BLOCK) * _BLOCK
        # Single precision in every model, so that the numbers are the same.
        if self._buffer.shape != (n, width):
            self._buffer = self._buffer.new_empty(n, width)
        self._buffer.normal_(generator=self.device_generator)
        drawn = self._buffer[:, :rest].to(self.like.dtype)
        return drawn.reshape(shape)


class Turn(RandomSource):
    """Orthogonal matrix Q that turns the draw of a pair: a shift with signs.

    Parameters
    ----------
    seed : int
        Seed of all pairs.
    pair : int
        Number of the pair.
    n_features : int
        Features m.
    like : Tensor
        Has the dtype and device of the numbers.
    """

    def __init__(self, seed: int, pair: int, n_features: int, like: Tensor) -> None:
        # The stream of the pair's own numbers is not in use.
        super().__init__(_seed_of(seed, pair), like)
        self._shift = int(self.generator.integers(1, n_features))
        signs = self.generator.integers(0, 2, size=n_features)
        self._signs = self.array(2.0 * signs - 1.0)

    def of(self, drawn: Tensor, out: Tensor) -> Tensor:
        """Turn numbers of shape (n, m) into a tensor of their shape."""
        k, signs = self._shift, self._signs
        torch.mul(drawn[:, k:], signs[:-k], out=out[:, :-k])
        torch.mul(drawn[:, :k], signs[-k:], out=out[:, -k:])
        return out


@dataclass
class PairStreams:
    """Streams of several pairs.

    Attributes
    ----------
    seed : int
        Seed of all pairs.
    pairs : range
        Numbers of the pairs.
    like : Tensor
        Has the dtype and device of the numbers.
    """

    seed: int
    pairs: range
    like: Tensor
    _streams: dict[int, PairStream] = field(default_factory=dict)
    _turns: dict[int, Turn] = field(default_factory=dict)

    def each(self) -> list[PairStream]:
        """Return the stream of each pair."""
        return [self._stream(pair) for pair in self.pairs]

    def shared(self, n_features: int) -> list[tuple[PairStream, list[Turn | None]]]:
        """Return streams with the turns of the pairs that share each; None is none."""
        if n_features < _WIDE:
            return [(stream, [None]) for stream in self.each()]
        return [
            (self._stream(first), [self._turn(pair, n_features) for pair in pairs])
            for first, pairs in groupby(
                self.pairs, lambda pair: pair - pair % _SHARED_BY
            )
        ]

    def _stream(self, pair: int) -> PairStream:
        """Open the stream of a pair, or go on with it."""
        if pair not in self._streams:
            self._streams[pair] = PairStream(self.seed, pair, self.like)
        return self._streams[pair]

    def _turn(self, pair: int, n_features: int) -> Turn | None:
        """Draw the turn of a pair; the first that shares a draw takes it as it is."""
        if pair % _SHARED_BY == 0:
            return None
        if pair not in self._turns:
            self._turns[pair] = Turn(self.seed, pair, n_features, self.like)
        return self._turns[pair]
