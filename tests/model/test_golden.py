"""Parity with the published model: every number in ``tests/golden`` within its stated tolerance."""

import numpy as np
import pytest
import torch

from dataset.io import read_mask
from inference.core import InferenceCore
from inference.memory_bank import MemoryBank
from model import memory
from tests.conftest import GOLDEN, REPOSITORY, golden
from tests.helpers import assert_close, assert_same_objects, normalised, unpadded_pixels

SHARED = REPOSITORY.parent / 'shared' / 'golden' / 'data'


@pytest.fixture(scope='module')
def network(golden_network):
    """It encodes a frame once for all tests of this module; otherwise, most of their time would go there."""
    encode, queries = golden_network.encode_query, {}

    def encode_once(image):
        content = image.numpy().tobytes()
        if content not in queries:
            queries[content] = encode(image)
        return queries[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden_network, 'encode_query', encode_once)
        yield golden_network


@torch.inference_mode()
def test_network(golden_network, clip, first_mask):
    expected = golden('network')
    image = normalised(clip[0])
    query = golden_network.encode_query(image)
    assert_close(query.key, expected['k16'])
    for name, found in (('f16_thin', query.thin), ('f16', query.f16), ('f8', query.f8), ('f4', query.f4)):
        assert_close(found[:, ::4], expected[name])
    for K in (1, 2, 3):
        masks = torch.stack([first_mask[:96, :176] == label for label in range(1, K + 1)])[None].float()
        key, value = golden_network.encode_memory(image, query, masks)
        assert_close(value[0, :, ::4], expected[f'value_{K}obj'])
    chunked = golden_network.encode_memory(image, query, masks, object_chunk=2)[1]
    assert_close(chunked[0, :, ::4], expected['value_3obj'])

    bank = MemoryBank(top_k=20)
    bank.add(key[0], value[0])
    query = golden_network.encode_query(normalised(clip[5]))
    assert_close(query.key, expected['query_k16'])
    assert_close(query.thin[:, ::4], expected['query_thin'])
    readout = bank.read(query.key[0])
    assert_close(readout[:, ::4], expected['readout_top20'])
    assert_same_objects(golden_network.decode(readout[None], query).sigmoid(), expected)


def memory_tensors():
    """memory_key [64, T, h, w], memory_value [3, 512, T, h, w], query_key [64, h, w], and all arrays of the file."""
    expected = golden('memory')
    tensors = [torch.from_numpy(expected[name]) for name in ('memory_key', 'memory_value', 'query_key')]
    return tensors[0][0], tensors[1], tensors[2][0], expected


def test_similarity_and_affinity():
    memory_key, _, query_key, expected = memory_tensors()
    keys, query = memory_key.flatten(1).T[None], query_key.flatten(1).T[None]
    found = memory.similarity(keys, query, metric='l2')
    # The expected similarities are not yet divided by sqrt(Ck) = 8.
    assert_close(8 * found[0].T, expected['similarity'], tolerance=1e-4 * np.abs(expected['similarity']).max())
    assert_close(found.softmax(dim=-1)[0].T, expected['affinity'])


@pytest.mark.parametrize(
    ('top_k', 'kernel_sigma', 'name'),
    [
        (1, None, 'readout_top1'),
        (20, None, 'readout_top20'),
        (50, None, 'readout_top50'),
        (None, None, 'readout_dense'),
        (10**6, None, 'readout_dense'),
        (20, 7, 'readout_top20_kernel_sigma7'),
        (20, 2, 'readout_top20_kernel_sigma2'),
    ],
)
def test_read(top_k, kernel_sigma, name):
    memory_key, memory_value, query_key, expected = memory_tensors()
    bank = MemoryBank(top_k=top_k, kernel_sigma=kernel_sigma, capacity=1)
    for t in range(memory_key.shape[1]):
        bank.add(memory_key[None, :, t], memory_value[:, :, t])
    assert_close(bank.read(query_key), expected[name])


def test_training_read():
    memory_key, memory_value, query_key, expected = memory_tensors()
    found = memory.read_dense(memory_key[None, None], memory_value[None], query_key[None], metric='l2')
    assert_close(found[0], expected['readout_dense'])


@pytest.mark.parametrize(
    'name', ['prob_1obj_every5_nolast', 'prob_3obj_every5_nolast', 'prob_2obj_every3_nolast', 'prob_2obj_every5_last']
)
def test_propagation(network, clip, first_mask, name):
    expected = unpadded_pixels(golden('propagation')[name])
    core = InferenceCore(network, mem_every=int(name.split('every')[1][0]), include_last=not name.endswith('nolast'))
    objects = list(range(1, int(name[5]) + 1))
    for t, image in enumerate(clip):
        prob = core.step(image, first_mask if t == 0 else None, objects if t == 0 else None, last=t == 11)
        assert_close(prob[:, 1::2, 1::2], expected[:, t], tolerance=5e-3)


@pytest.mark.parametrize('name', ['prob_every5', 'prob_every3', 'prob_every3_last', 'prob_every3_req0-4-7-9-11'])
def test_appearing(network, clip, name):
    expected = unpadded_pixels(golden('appearing')[name])
    wanted = [int(t) for t in name.split('req')[1].split('-')] if 'req' in name else range(12)
    core = InferenceCore(network, mem_every=int(name[len('prob_every')]), include_last='last' in name)
    seen = []
    for t, image in enumerate(clip):
        path = GOLDEN / 'appearing' / f'{t:05d}.png'
        mask = torch.from_numpy(read_mask(path)) if path.exists() else None
        prob = core.step(image, mask, wanted=t in wanted, last=t == 11)
        if prob is not None:
            seen.append(t)
            assert_close(prob[:, 1::2, 1::2], expected[: len(prob), t], tolerance=5e-3)
    assert core.objects == [2, 5, 9]
    assert seen == list(wanted)


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs the full golden arrays, which are not shipped')
@pytest.mark.parametrize('name', ['network', 'memory', 'propagation', 'appearing', 'stm'])
def test_shipped_arrays_are_the_full_ones(name):
    with np.load(SHARED / f'{name}.npz') as full:
        shipped = golden(name)
        assert set(shipped) == set(full)
        for key, array in shipped.items():
            pixels, channels = full[key][..., ::2, ::2], full[key][:, ::4] if full[key].ndim > 1 else None
            assert any(other is not None and np.array_equal(array, other) for other in (full[key], pixels, channels))
