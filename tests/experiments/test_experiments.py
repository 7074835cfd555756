"""What every experiment has to offer to be run."""

import json
from dataclasses import FrozenInstanceError, asdict, fields

import pytest

from sklearn_relflat.experiments._registry import experiment_names, load_experiment
from sklearn_relflat.experiments._results_file import key_of

each = pytest.mark.parametrize("name", experiment_names())


@each
def test_claim_and_costs(name):
    module = load_experiment(name)
    assert module.CLAIM.endswith(".")
    assert set(module.COST) == set(module.PRESETS) == {"quick", "full"}


@each
def test_configurations_are_frozen_and_survive_json(name):
    for config in load_experiment(name).PRESETS.values():
        json.dumps(asdict(config), allow_nan=False)
        field = fields(config)[0].name
        with pytest.raises(FrozenInstanceError):
            setattr(config, field, None)


@each
@pytest.mark.parametrize("preset", ["quick", "full"])
def test_tasks_are_unique_scalars_in_a_fixed_order(name, preset):
    module = load_experiment(name)
    config = module.PRESETS[preset]
    tasks = module.tasks(config)
    assert tasks == module.tasks(config)
    assert len({key_of(task) for task in tasks}) == len(tasks) > 0
    for task in tasks:
        assert all(isinstance(v, str | int | float | None) for v in task.values())


@each
def test_a_measurement_depends_on_its_arguments_alone(name):
    module = load_experiment(name)
    config = module.PRESETS["quick"]
    task = module.tasks(config)[0]
    first, second = (
        json.dumps(module.measure(dict(task), config, 0, None), allow_nan=False)
        for _ in range(2)
    )
    assert first == second
