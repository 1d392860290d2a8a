"""Tests that run on the CPU and, where there is one, on a GPU, without saying so in every line.

A module asks for it with ``pytestmark = pytest.mark.usefixtures("on_device")``. What its tests
create is then on the device, with the values that the CPU would give. What the library creates is
where the library puts it, so that a device which it forgot shows as an error.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

TESTS = str(Path(__file__).parent)
_devices = [torch.device("cpu")]


def here() -> torch.device:
    """The device of the running test."""
    return _devices[-1]


def placed(module: Any) -> Any:
    """``module``, which the library has built, on the device of the running test."""
    return module.to(here())


def only_on_the_cpu(why: str) -> None:
    """Skip the running test elsewhere."""
    if here().type != "cpu":
        pytest.skip(why)


@contextmanager
def working_on(device: torch.device) -> Iterator[None]:
    """fp32 is fp32 meanwhile: cuDNN's convolutions would take TF32."""
    convolutions: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    precision = convolutions.fp32_precision
    _devices.append(device)
    convolutions.fp32_precision = "ieee"
    try:
        with _CreateOn(device):
            yield
    finally:
        convolutions.fp32_precision = precision
        _devices.pop()


class _CreateOn(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        named = kwargs.get("device") is not None
        if named or func not in _device_constructors() or not _asked_by_a_test():
            return func(*args, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        return func(*args, **kwargs).to(self.device).requires_grad_(requires_grad)


def _asked_by_a_test() -> bool:
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(TESTS)
