"""Batches that are cut anew and held."""

import pytest
import torch

from sklearn_relflat._data.batches import HeldBatches, SlicedBatches, groups


def sliced(n_samples, batch_size):
    X = torch.arange(2.0 * n_samples).reshape(n_samples, 2)
    y, weight = torch.arange(n_samples), torch.rand(n_samples)
    source = SlicedBatches(
        X.__getitem__, n_samples, batch_size, y, weight, X.device, X.dtype, share=True
    )
    return X, y, weight, source


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 20])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 100])
def test_groups_are_consecutive(size, batch_size):
    X, y, weight, source = sliced(11, batch_size)
    start = 0
    for group in groups(source, size):
        stop = min(start + size, 11)
        assert torch.equal(torch.cat([part.inputs for part in group]), X[start:stop])
        assert torch.equal(torch.cat([part.y for part in group]), y[start:stop])
        found = torch.cat([part.sample_weight for part in group])
        assert torch.equal(found, weight[start:stop])
        assert [part.start for part in group] == [int(part.y[0]) for part in group]
        assert HeldBatches(group).n_samples == stop - start
        start = stop
    assert start == 11


def test_held_batches_can_be_read_again():
    """A module that writes into its inputs does not write into what is held."""
    X, _, _, source = sliced(5, 2)
    held = HeldBatches(list(source))
    assert len(held) == 3
    for _ in range(2):
        seen = []
        for batch in held:
            seen.append(batch.inputs.clone())
            batch.inputs.zero_()
        assert torch.equal(torch.cat(seen), X)
    assert held.first(1).n_samples == 1
