"""Lazy AdamW against torch's own on fetched blocks; blocks that are not fetched do not move."""

import torch

from fedmem.training.lazy_adamw import AdamWSettings, LazyAdamW

SETTINGS = AdamWSettings(lr=1e-2, weight_decay=0.1)


def test_equals_dense_adamw_with_the_blocks_own_step_count():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 3, 5, generator=generator)
    lazy = LazyAdamW(rows.clone())
    singles = [torch.nn.Parameter(rows[n].clone()) for n in range(4)]
    dense = [torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) for p in singles]
    for step in range(12):
        blocks = torch.tensor([[0, 2], [1, 2], [2, 3], [0, 3]][step % 4])
        grads = torch.randn(2, 3, 5, generator=generator)
        lazy.step(blocks, grads, SETTINGS)
        for block, grad in zip(blocks.tolist(), grads, strict=True):
            singles[block].grad = grad.clone()
            dense[block].step()
    torch.testing.assert_close(lazy.blocks, torch.stack([p.data for p in singles]), atol=1e-6, rtol=1e-6)


def test_a_block_that_is_not_fetched_keeps_every_bit():
    rows = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1))
    lazy = LazyAdamW(rows.clone())
    lazy.step(torch.tensor([1]), torch.ones(1, 2, 2), SETTINGS)
    for untouched in (0, 2):
        assert torch.equal(lazy.blocks[untouched], rows[untouched])
        assert not any(part[untouched].any() for part in lazy.moments)
    assert not torch.equal(lazy.blocks[1], rows[1])
