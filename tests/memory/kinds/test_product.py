"""The product of every kind of memory: equal in every case, with the gradient of each item where one is needed."""

import pytest
import torch

from fedmem.memory.kinds.product import add_product, product, recording_factors

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 5, generator=GENERATOR)
W = torch.randn(3, 5, 6, generator=GENERATOR)
CASES = {"one for each": W, "one for all": W[:1], "one, expanded": W[:1].expand(3, -1, -1)}


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_the_plain_product(case):
    expected = torch.stack([x_TI @ w_IO for x_TI, w_IO in zip(X, CASES[case].expand(3, -1, -1), strict=True)])
    torch.testing.assert_close(product(X, CASES[case]), expected)
    output = torch.ones(3, 4, 6)
    torch.testing.assert_close(add_product(output, X, CASES[case], 2.0), 1 + 2 * expected)
    assert torch.equal(output, torch.ones(3, 4, 6))


def test_another_number_of_matrices_is_an_error():
    with pytest.raises(RuntimeError):
        product(X, W[:2])


def leaf():
    return W[:1].clone().expand(3, -1, -1).requires_grad_()


def test_an_expanded_block_gets_the_gradient_of_each_item():
    expanded, alone = leaf(), W[:1].repeat(3, 1, 1).requires_grad_()
    for matrices in (expanded, alone):
        product(X, matrices).square().sum().backward()
    torch.testing.assert_close(expanded.grad, alone.grad)
    assert not torch.equal(expanded.grad[0], expanded.grad[1])


def test_factors_go_to_the_callback_instead_of_a_gradient():
    expanded, plain, factors = leaf(), leaf(), []
    product(X, plain).square().sum().backward()
    with recording_factors(lambda x, grad, w: factors.append((x, grad)) is None):
        result = product(X, expanded)
    result.square().sum().backward()  # after the `with`: the product was made inside
    ((x_BTI, grad_BTO),) = factors
    assert expanded.grad is None
    torch.testing.assert_close(torch.bmm(x_BTI.mT, grad_BTO), plain.grad)


def test_a_callback_that_declines_leaves_the_gradient_and_an_error_leaves_no_callback():
    expanded, plain = leaf(), leaf()
    product(X, plain).sum().backward()
    with recording_factors(lambda *_: False):
        result = product(X, expanded)
    result.sum().backward()
    torch.testing.assert_close(expanded.grad, plain.grad)
    with pytest.raises(KeyError), recording_factors(lambda *_: True):
        raise KeyError
    again = leaf()
    product(X, again).sum().backward()
    torch.testing.assert_close(again.grad, plain.grad)
