import pytest
import torch

from muonlab.lab.experiment import Study
from muonlab.papers import EXPERIMENTS


def shapes():
    """One arm of every model and optimizer that the studies train at paper scale."""
    found = {}
    for name, make in EXPERIMENTS.items():
        experiment = make("paper")
        if isinstance(experiment, Study):
            for arm in experiment.arms:
                key = (repr(arm.config.model), arm.config.optimizer.kind)
                found.setdefault(key, pytest.param(arm.config, id=f"{name}-{arm.name}"))
    return list(found.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:attention kind mhla is not causal")
@pytest.mark.parametrize("config", shapes())
def test_two_steps_at_the_papers_full_shape(config):
    model = config.model.build(0)
    optimizer = config.optimizer.build(model)
    model.compute_dtype = torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.train.sequence_length + 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
        output = model(tokens[:, :-1], tokens[:, 1:], generator)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert output.cross_entropy.isfinite()
    for was, parameter in zip(before, model.parameters(), strict=True):
        assert parameter.isfinite().all()
        if parameter.ndim == 2:  # an expert may have had no token
            assert not torch.equal(was, parameter)
