"""The memory bank against the equations written out for the whole memory at once."""

import pytest
import torch

from inference.memory_bank import MemoryBank
from model.memory import top_k_weights
from tests.helpers import dense_read

Ck, Cv, h, w = 8, 12, 3, 4


def random_frames(T, K, *, shared):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(T, 1 if shared else K, Ck, h, w, generator=generator)
    values = torch.randn(T, K, Cv, h, w, generator=generator)
    return keys, values, torch.randn(Ck, h, w, generator=generator)


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('top_k', [1, 5, None, 1000])
@pytest.mark.parametrize('metric', ['l2', 'dot'])
@pytest.mark.parametrize('scratch_bytes', [1, 2000, 2**20])
@pytest.mark.parametrize('sigma', [None, 1.5])
def test_read_of_objects_that_join_at_different_frames(shared, top_k, metric, scratch_bytes, sigma):
    joins = [0, 0, 2, 3, 3]
    keys, values, query = random_frames(7, len(joins), shared=shared)
    bank = MemoryBank(
        shared_keys=shared, top_k=top_k, metric=metric, kernel_sigma=sigma, capacity=1, scratch_bytes=scratch_bytes
    )
    for t in range(7):
        K = sum(join <= t for join in joins)
        bank.add(keys[t, : 1 if shared else K], values[t, :K])
    found = bank.read(query)
    for k, join in enumerate(joins):
        expected = dense_read(keys[join:, 0 if shared else k], values[join:, k], query, top_k, metric, sigma)
        torch.testing.assert_close(found[k], expected, atol=1e-5, rtol=1e-4)


def test_a_wide_kernel_is_none():
    keys, values, query = random_frames(5, 2, shared=True)
    found, expected = MemoryBank(kernel_sigma=1e4), MemoryBank()
    for bank in (found, expected):
        for t in range(5):
            bank.add(keys[t], values[t])
    torch.testing.assert_close(found.read(query), expected.read(query))


def test_kernel_of_large_keys_stays_finite():
    """Even a narrow kernel and keys far from the query do not make all weights exp(S - max) of a position zero."""
    keys, values, query = random_frames(3, 2, shared=True)
    bank = MemoryBank(top_k=5, kernel_sigma=0.01)
    for t in range(3):
        bank.add(1e4 * keys[t], values[t])
    assert bank.read(1e4 * query).isfinite().all()


def test_temporary_frame_is_replaced_by_the_next_one():
    keys, values, query = random_frames(4, 2, shared=True)
    bank, expected = MemoryBank(capacity=1), MemoryBank()
    bank.add(keys[0], values[0])
    bank.add(keys[1], values[1], permanent=False)
    assert len(bank) == 2
    bank.add(keys[2], values[2], permanent=False)
    for t in (0, 2):
        expected.add(keys[t], values[t])
    assert torch.equal(bank.read(query), expected.read(query))
    bank.add(keys[3], values[3])
    assert len(bank) == 2


def test_objects_join_only_at_permanent_frames_and_never_leave_unasked():
    keys, values, _ = random_frames(2, 2, shared=True)
    bank = MemoryBank()
    bank.add(keys[0], values[0, :1])
    with pytest.raises(ValueError, match='join at permanent'):
        bank.add(keys[1], values[1], permanent=False)
    bank.add(keys[1], values[1])
    with pytest.raises(ValueError, match='only leave by remove'):
        bank.add(keys[1], values[1, :1])


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('max_frames', [None, 5])
@pytest.mark.parametrize('leaving', [[1], [0, 0], [2], [4, 3], [0, 0, 0], [3, 0, 0, 0]])
def test_objects_that_leave_take_their_values_and_the_frames_that_nobody_else_reads(shared, max_frames, leaving):
    """The objects that stay read the same as if nobody had left, also from frames that come later."""
    joins = [0, 0, 2, 3, 3]
    keys, values, query = random_frames(9, len(joins), shared=shared)
    bank, expected = (MemoryBank(shared_keys=shared, top_k=5, max_frames=max_frames, capacity=9) for _ in range(2))
    left = list(range(len(joins)))
    for t in range(9):
        if t == 5:
            before, all_frames = bank.nbytes, len(bank)
            for index in leaving:
                bank.remove(index)
                left.pop(index)
            assert bank.nbytes < before
            assert bank.num_objects == len(left)
            if max_frames is None:
                assert len(bank) == all_frames - min(joins[k] for k in left)
        here = [k for k in left if joins[k] <= t]
        everybody = [k for k in range(len(joins)) if joins[k] <= t]
        bank.add(keys[t, [0] if shared else here], values[t, here], permanent=t != 5)
        expected.add(keys[t, [0] if shared else everybody], values[t, everybody], permanent=t != 5)
        if t < 6 or max_frames is None:  # a bounded memory chooses by the weights of all objects
            torch.testing.assert_close(bank.read(query), expected.read(query)[here])
        assert bank.read(query).isfinite().all()
        assert max_frames is None or len(bank) <= max_frames + 1


def test_memory_that_everybody_left_is_new():
    keys, values, query = random_frames(6, 2, shared=True)
    bank, new = (MemoryBank(max_frames=3) for _ in range(2))
    for t in range(4):
        bank.add(keys[t], values[t], permanent=t < 3)
    with pytest.raises(IndexError, match='less than 2'):
        bank.remove(2)
    bank.remove(0)
    bank.remove(0)
    assert len(bank) == bank.nbytes == 0
    for t in (4, 5):
        for each in (bank, new):
            each.add(keys[t], values[t])
    assert torch.equal(bank.read(query), new.read(query))
    assert bank.nbytes == new.nbytes


def test_reserved_memory_does_not_grow():
    keys, values, _ = random_frames(6, 1, shared=True)
    bank = MemoryBank(capacity=6)
    bank.add(keys[0], values[0])
    reserved = bank.nbytes
    for t in range(1, 6):
        bank.add(keys[t], values[t])
    assert bank.nbytes == reserved == 6 * h * w * 4 * (Ck + 1 + Cv)


def test_large_keys_in_any_precision_give_finite_readouts():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        keys, values, query = random_frames(3, 2, shared=True)
        bank = MemoryBank(top_k=5)
        for t in range(3):
            bank.add((1e4 * keys[t]).to(dtype), values[t].to(dtype))
        found = bank.read((1e4 * query).to(dtype))
        assert found.dtype == dtype
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ('options', 'named'),
    [({'top_k': 0}, 'top_k'), ({'metric': 'cosine'}, "similarity: .*'cosine'"), ({'kernel_sigma': 0}, 'kernel_sigma')],
)
def test_wrong_options(options, named):
    with pytest.raises(ValueError, match=named):
        MemoryBank(**options)


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('top_k', [3, None])
def test_least_used_frame_goes_and_annotated_ones_stay(shared, top_k):
    """Every query equals the key of frame 4, which is therefore used; frames 2 and 3 are far from it."""
    keys, values, _ = random_frames(9, 2, shared=shared)
    keys[[1, 2, 3]] += 20
    bank = MemoryBank(shared_keys=shared, top_k=top_k, max_frames=4)
    kept = []
    for t in range(9):
        K = 1 if t == 0 else 2  # object 2 joins with frame 1, which stays for that
        bank.add(keys[t, : 1 if shared else K], values[t, :K], protected=t == 0)
        kept.append(t)
        if t == 4:
            kept.remove(2)  # 2 and 3 were never used; the first of them goes
        elif t == 5:
            kept.remove(3)
        elif t > 5:
            kept.remove(t - 1)  # 4 is used, the one before is not: it is far from the queries
        keys[t + 1 :, :] += 40 if t >= 4 else 0
        assert len(bank) == len(kept) <= 4
        query = keys[4, 0]
        found = bank.read(query)
        for k, join in enumerate([0, 1][:K]):
            rows = [frame for frame in kept if frame >= join]
            expected = dense_read(keys[rows, 0 if shared else k], values[rows, k], query, top_k)
            torch.testing.assert_close(found[k], expected, atol=1e-3, rtol=1e-3)  # large keys: few digits are left
    assert kept == [0, 1, 4, 8]


def test_more_annotated_frames_than_the_bound_all_stay():
    keys, values, query = random_frames(6, 1, shared=True)
    bank = MemoryBank(max_frames=2)
    for t in range(6):
        bank.add(keys[t], values[t], protected=t % 2 == 0)
        bank.read(query)
    assert len(bank) == 3


@pytest.mark.parametrize(
    ('frames', 'places', 'top_k'), [(4, 30, 20), (9, 21, 20), (50, 24, 5), (5, 12, 1), (7, 20, 20)]
)
def test_two_step_selection_is_the_one_step_one(frames, places, top_k):
    """In the last case, a frame has no more places than are to be chosen, so that a single step chooses them."""
    torch.manual_seed(0)
    # A row has few different values, and a single place has all the large ones. A wrong shortcut would miss some.
    similarity = torch.randn(2, 6, frames, places).mul(4).round()
    similarity[0, 0, :, 3] += 100
    similarity = similarity.flatten(2)
    weights, indices = top_k_weights(similarity, top_k, frames=frames)
    expected = similarity.topk(top_k, dim=-1).values
    assert torch.equal(similarity.gather(-1, indices), expected)
    assert torch.equal(weights, expected.softmax(dim=-1))
    assert all(len(set(row.tolist())) == top_k for row in indices.flatten(0, 1))


def test_values_in_half_precision():
    keys, values, query = random_frames(6, 2, shared=True)
    banks = [MemoryBank(value_dtype=dtype, capacity=6) for dtype in (None, torch.half)]
    for key, value in zip(keys, values, strict=True):
        for bank in banks:
            bank.add(key, value)
    expected, found = (bank.read(query) for bank in banks)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    added = [bank.nbytes - 4 * 6 * h * w * (Ck + 1) for bank in banks]
    assert added[0] == 2 * added[1]
