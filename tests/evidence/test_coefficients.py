"""Coefficients against tables worked by hand, slow oracles and invariances."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from sklearn_relflat._evidence import coefficients
from sklearn_relflat._evidence.coefficients import Samples
from sklearn_relflat._evidence.pairs import RunPairs


def of_all(name):
    """A coefficient of all runs as they are."""

    def evaluated(measure, target, codes=None, control=None, drawn=None):
        n = len(measure)
        codes = np.zeros((n, 1), dtype=int) if codes is None else codes
        control = np.zeros((n, 0)) if control is None else control
        drawn = np.arange(n) if drawn is None else drawn
        samples = Samples(drawn[None], target, control, RunPairs(codes))
        (value,) = getattr(coefficients, name)(measure, samples)
        return value

    return evaluated


pearson, spearman, kendall = map(of_all, ("pearson", "spearman", "kendall"))
partial_spearman = of_all("partial_spearman")
granulated_kendall = of_all("granulated_kendall")
conditional_information = of_all("conditional_information")
sign_error = of_all("sign_error")
OF_PAIRS = [granulated_kendall, sign_error, conditional_information]
# Two hyperparameters of two values; the target rises with the first, not the second.
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
TARGET = np.array([1.0, 2.0, 3.0, 4.0])
MEASURE = np.array([2.0, 1.0, 4.0, 3.0])


def slow_granulated(measure, target, codes):
    psi = []
    for h in range(codes.shape[1]):
        by_setting = {}
        for i, j in combinations(range(len(codes)), 2):
            if [k for k in range(codes.shape[1]) if codes[i, k] != codes[j, k]] == [h]:
                sign = np.sign((measure[i] - measure[j]) * (target[i] - target[j]))
                by_setting.setdefault(tuple(np.delete(codes[i], h)), []).append(sign)
        if by_setting:
            psi.append(np.mean([np.mean(signs) for signs in by_setting.values()]))
    return np.mean(psi)


def slow_sign_error(measure, target, codes):
    errors = {}
    for i, j in combinations(range(len(codes)), 2):
        if (codes[i] != codes[j]).sum() == 1:
            sign = np.sign((measure[i] - measure[j]) * (target[i] - target[j]))
            key = frozenset([tuple(codes[i]), tuple(codes[j])])
            errors.setdefault(key, []).append((1 - sign) / 2)
    return max(np.mean(error) for error in errors.values())


def slow_information(measure, target, codes):
    best = math.inf
    for size in range(3):
        for S in combinations(range(codes.shape[1]), size):
            cells = {}
            for i, j in product(range(len(codes)), repeat=2):
                if measure[i] != measure[j] and target[i] != target[j]:
                    U = (tuple(codes[i, list(S)]), tuple(codes[j, list(S)]))
                    signs = (measure[i] > measure[j], target[i] > target[j])
                    cells.setdefault(U, []).append(signs)
            n = sum(map(len, cells.values()))
            information = entropy = 0.0
            for signs in cells.values():
                for m, t in product([False, True], repeat=2):
                    p = signs.count((m, t)) / len(signs)
                    p_m = np.mean([s[0] == m for s in signs])
                    p_t = np.mean([s[1] == t for s in signs])
                    if p > 0:
                        information += len(signs) / n * p * np.log(p / (p_m * p_t))
                        entropy -= len(signs) / n * p * np.log(p_t)
            if entropy > 1e-12:
                best = min(best, information / entropy)
    return best


def cases():
    rng = np.random.default_rng(0)
    for seeds, ties in [(1, False), (3, False), (2, True)]:
        codes = np.repeat(list(product(range(3), range(2), range(2))), seeds, axis=0)
        measure = codes[:, 0] + rng.normal(size=len(codes))
        target = codes.sum(axis=1) + rng.normal(size=len(codes))
        if ties:
            measure, target = measure.round(), target.round()
        # One run in eight is missing: the grid is not complete.
        kept = rng.random(len(codes)) > 1 / 8
        yield measure[kept], target[kept], codes[kept]


ORACLES = [slow_granulated, slow_sign_error, slow_information]


@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize(("fast", "slow"), [*zip(OF_PAIRS, ORACLES, strict=True)])
@pytest.mark.parametrize("resampled", [False, True])
def test_fast_is_slow(fast, slow, case, resampled):
    measure, target, codes = case
    drawn = np.arange(len(measure))
    if resampled:
        drawn = np.random.default_rng(3).integers(len(measure), size=len(measure))
    expected = slow(measure[drawn], target[drawn], codes[drawn])
    found = fast(measure, target, codes, drawn=drawn)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("resampled", [False, True])
def test_plain_coefficients_are_those_of_scipy(case, resampled):
    measure, target, _ = case
    drawn = np.arange(len(measure))
    if resampled:
        drawn = np.random.default_rng(3).integers(len(measure), size=len(measure))
    for fast, slow in [
        (pearson, pearsonr),
        (spearman, spearmanr),
        (kendall, kendalltau),
    ]:
        expected = slow(measure[drawn], target[drawn]).statistic
        found = fast(measure, target, drawn=drawn)
        assert found == pytest.approx(expected, abs=1e-12)


def test_worked_by_hand():
    # Four pairs agree and two do not; squared rank differences are 1 each.
    assert kendall(MEASURE, TARGET) == pytest.approx(2 / 6)
    assert spearman(MEASURE, TARGET) == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert pearson(MEASURE, TARGET) == pytest.approx(0.6)
    # psi is 1 along the first hyperparameter, and -1 along the second.
    assert granulated_kendall(MEASURE, TARGET, CODES) == 0
    assert sign_error(MEASURE, TARGET, CODES) == 1
    # Given a hyperparameter, signs that are still open are told entirely. Without one,
    # four ordered pairs in twelve disagree: 1 - H(1/3) in bits.
    h = -(np.log2(1 / 3) / 3 + 2 * np.log2(2 / 3) / 3)
    assert conditional_information(MEASURE, TARGET, CODES) == pytest.approx(1 - h)


def test_perfect_and_reversed():
    for sign, error in [(1, 0), (-1, 1)]:
        assert granulated_kendall(sign * TARGET, TARGET, CODES) == sign
        assert sign_error(sign * TARGET, TARGET, CODES) == error
        found = conditional_information(sign * TARGET, TARGET, CODES)
        assert found == pytest.approx(1)


@pytest.mark.parametrize("coefficient", OF_PAIRS)
def test_only_the_order_counts(coefficient):
    measure, target, codes = next(iter(cases()))
    expected = coefficient(measure, target, codes)
    renamed = np.array([7, 2, 5])[codes]
    found = coefficient(np.exp(measure), target**3, renamed)
    assert found == pytest.approx(expected)


def test_control_takes_away_what_it_explains():
    rng = np.random.default_rng(0)
    control = rng.normal(size=(2000, 1))
    first, second = (control[:, 0] + rng.normal(size=2000) for _ in range(2))
    assert spearman(first, second) > 0.4
    assert abs(partial_spearman(first, second, control=control)) < 0.08
    assert math.isnan(partial_spearman(control[:, 0], second, control=control))


def test_partial_spearman_of_one_control_is_the_textbook_formula():
    rng = np.random.default_rng(1)
    control, measure = rng.normal(size=(2, 30))
    target = measure + control + rng.normal(size=30)
    r = {
        pair: spearmanr(*pair_of).statistic
        for pair, pair_of in {
            "mt": (measure, target), "mc": (measure, control), "tc": (target, control)
        }.items()
    }  # fmt: skip
    expected = (r["mt"] - r["mc"] * r["tc"]) / math.sqrt(
        (1 - r["mc"] ** 2) * (1 - r["tc"] ** 2)
    )
    found = partial_spearman(measure, target, control=control[:, None])
    assert found == pytest.approx(expected)


def test_undefined_is_nan():
    codes = np.array([[0, 0], [1, 1]])
    two = np.array([1.0, 2.0])
    assert math.isnan(granulated_kendall(two, two, codes))
    assert math.isnan(sign_error(two, two, codes))
    for coefficient in (pearson, spearman, kendall):
        assert math.isnan(coefficient(np.ones(2), two))
    assert math.isnan(conditional_information(np.ones(2), two, codes))
