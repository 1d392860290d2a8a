"""Parameters of which a process holds only a part are refused by name, before anything moves."""

import pytest
import torch
import torch.distributed as dist
from made_parameters import assert_equal_parameters, clones, parameters, set_gradients
from torch import nn

from muonlab.optim import Muon, build_groups

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(parameter, mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]))


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_a_dtensor_is_refused_by_name(mesh, algorithm):
    (p,) = parameters((4, 8))
    group = {"params": [("blocks.0.weight", sharded(p, mesh))], "algorithm": algorithm}
    with pytest.raises(ValueError, match=r"blocks\.0\.weight: a DTensor.*DistributedDataParallel"):
        Muon([group])


def test_a_parameter_that_becomes_a_dtensor_is_refused_before_anything_moves(mesh):
    params = parameters((4, 8), (7,), (8, 8))
    muon = Muon([{"params": params[1:2], "algorithm": "adamw"}, {"params": params[::2]}])
    before = clones(params)
    set_gradients(0, params)
    muon.param_groups[1]["params"][1] = sharded(params[2], mesh)
    with pytest.raises(ValueError, match="a DTensor"):
        muon.step()
    assert_equal_parameters(params, before)


def test_fully_shard_is_refused_when_the_groups_are_built(mesh):
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(8, 8)
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match="weight: a DTensor"):
        build_groups(model)


def test_an_optimizer_built_before_fully_shard_says_that_nothing_moves(mesh):
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(8, 8)
    muon = Muon(build_groups(model))
    fully_shard(model, mesh=mesh)
    model(torch.ones(2, 8)).sum().backward()
    with pytest.warns(UserWarning, match="parameters were replaced after the optimizer was built"):
        muon.step()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused_by_name(mesh, use_orig_params):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(
        nn.Linear(8, 8), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel \(FSDP1\)"):
        build_groups(model)
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel \(FSDP1\)"):
        Muon(model.parameters())
