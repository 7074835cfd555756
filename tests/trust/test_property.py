"""Random modules that break assumptions: the brute-force value, or a named refusal."""

import pytest

from tests.trust.property import run_trial

N_TRIALS, BLOCK = 200, 10


@pytest.mark.parametrize("start", range(0, N_TRIALS, BLOCK))
def test_the_value_or_a_refusal_and_never_a_third_thing(start):
    found = [run_trial(seed) for seed in range(start, start + BLOCK)]
    # A third of the modules is harmless, and none of these is refused.
    assert found.count("value") >= BLOCK // 3 - 1
