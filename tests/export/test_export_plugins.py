"""The plugins' kernels in Triton's interpreter, with the arguments in the order in which TensorRT passes them."""

import pytest
import torch

from storyloom_export.tensorrt import ptx
from storyloom_kernels.implementations import triton_obstacle
from tests.export.running import identity_inputs

CPU = torch.zeros(1)


@pytest.mark.parametrize("width", [16, 40])
@pytest.mark.parametrize("lengths", [[[3, 0], [20, 2], [0, 0]], [[0], [0], [0]]])
def test_identity_streams(width: int, lengths: list[list[int]]) -> None:
    if obstacle := triton_obstacle(CPU):
        pytest.skip(obstacle)
    given, expected = identity_inputs(3, 37, lengths, 2, seed=4, width=width)
    kernel = ptx.identity("fp32", 2, width)
    sizes = (37, given["id_k"].shape[1], given["ends"].shape[1], 2)
    out = torch.full_like(expected, float("nan"))
    tiles = -(-37 // kernel.constants["BM"])
    kernel.kernel[(tiles, 2, 3)](*given.values(), *sizes, out, **kernel.constants)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
