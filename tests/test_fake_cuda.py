"""What a GPU would be waited for, found without one: training steps on FakeTensors of "cuda"."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch

TINY = ("model.dim=64", "model.num_layers=2", "train.batch_size=4", "train.sequence_length=64")
TINY_P2 = (*TINY, "model.ffn.hidden_dim=64", "train.micro_batch_size=2")


def updates(recipe: str, *overrides: str) -> dict[str, Any]:
    """Two updates in a process of its own: the device that does nothing stays loaded."""
    if torch.backends.cuda.is_built() and not torch.cuda.is_available():
        pytest.skip("this torch is built for GPUs and finds none: its backward pass needs one")
    try:
        fake_cuda.build_guard()
    except OSError as error:
        pytest.skip(f"backward on a fake GPU: {error}")
    command = [sys.executable, str(Path(fake_cuda.__file__)), recipe, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("p2", ()),  # its 4 micro-batches of 24 × 512 tokens
        pytest.param("p2", TINY_P2, marks=pytest.mark.slow),
        pytest.param("p2", (*TINY_P2, "optimizer.qk_clip=100"), marks=pytest.mark.slow),
        pytest.param("p2_mhla", TINY_P2, marks=pytest.mark.slow),
        pytest.param("small", (), marks=pytest.mark.slow),
        pytest.param("p1_30m", (*TINY, "train.micro_batch_size=2"), marks=pytest.mark.slow),
        pytest.param("small", ("model.attention.kind=causal_mhla",), marks=pytest.mark.slow),
    ],
)
def test_a_training_step_reads_from_the_gpu_once(recipe: str, overrides: tuple[str, ...]):
    found = updates(recipe, *overrides)
    for reads in found["reads"]:
        places = {place.split(", ")[1].split(":")[0]: count for place, count in reads.items()}
        # loss, norms, and which matrices half precision could not resolve, together
        assert places == {"update.py": 1}, reads
    assert found["backward_operations"] > 1000
    assert found["misplaced"] == []
    assert "train/loss" in found["metrics"]


@pytest.mark.slow
def test_experts_that_the_grouped_kernel_refuses_are_multiplied_one_by_one():
    """Widths that are no multiple of 16 bytes, at the cost of reading the loads."""
    found = updates("p2", *TINY_P2[:-2], "model.ffn.hidden_dim=60", "train.micro_batch_size=2")
    assert any("grouped.py" in place for place in found["reads"][0])
