"""Rows in another order, against plain indexing."""

from __future__ import annotations

import pytest
import torch

from specc.compiler.lower.permute import copied, permuted


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_of_rows_are_those_of_indexing(copies: int) -> None:
    draw = torch.Generator().manual_seed(copies)
    order = torch.randperm(5 * copies, generator=draw)
    x = torch.randn(5, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5 * copies, 4, generator=draw, dtype=torch.float64)
    y, plain = copied(x, order, torch.argsort(order), copies), x[order // copies]
    assert torch.equal(y, plain)
    (ours,), (theirs,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(plain, x, dy)
    torch.testing.assert_close(ours, theirs)


def test_rows_of_numbers_are_permuted() -> None:
    x = torch.arange(6.0, requires_grad=True)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    y = permuted(x, order, torch.argsort(order))
    assert y.tolist() == [3, 0, 5, 1, 4, 2]
    assert torch.autograd.grad(y, x, torch.arange(6.0))[0].tolist() == torch.argsort(order).tolist()
