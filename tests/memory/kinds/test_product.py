"""The product of every kind of memory: equal in every case, with the gradient of each item where one is needed."""

import pytest
import torch

from fedmem.memory.kinds.product import add_product, gathered, product

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


def test_the_gradient_of_one_matrix_for_all_is_added_to_its_place():
    alone, plain, place_IO = W[:1].clone().requires_grad_(), W[:1].clone().requires_grad_(), torch.ones(5, 6)
    product(X, plain).square().sum().backward()
    with gathered(lambda w_BIO: place_IO):
        result = product(X, alone)
    result.square().sum().backward()  # after the `with`: the product was made inside
    assert alone.grad is None
    torch.testing.assert_close(place_IO, 1 + plain.grad[0])


def test_a_matrix_without_a_place_gets_a_plain_gradient_and_an_error_leaves_nothing():
    alone, plain = W[:1].clone().requires_grad_(), W[:1].clone().requires_grad_()
    product(X, plain).sum().backward()
    with gathered(lambda _: None):
        result = product(X, alone)
    result.sum().backward()
    torch.testing.assert_close(alone.grad, plain.grad)
    with pytest.raises(KeyError), gathered(lambda _: torch.zeros(5, 6)):
        raise KeyError
    again = W[:1].clone().requires_grad_()
    product(X, again).sum().backward()
    torch.testing.assert_close(again.grad, plain.grad)
