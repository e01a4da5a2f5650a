"""The streaming core: schedules, annotations, sizes, and that streaming equals a run over the whole video."""

import functools
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inference.confidence import expected_iou
from inference.core import InferenceCore, InputError, Schedule
from inference.memory_bank import MemoryBank
from model.aggregate import aggregate
from model.network import Network, Query
from model.variants import STCNConfig
from tests.conftest import ROUNDING, make_small_network
from tests.helpers import dense_read


class PerObjectKeys(Network):
    """A toy of STM's kind: the memory key depends on the object. Each function is one convolution."""

    shared_keys = False

    def __init__(self):
        super().__init__(STCNConfig())
        torch.manual_seed(0)
        self.query = nn.Conv2d(3, 8, 16, stride=16)
        self.memory = nn.Conv2d(4, 8 + 12, 16, stride=16)
        self.output = nn.Conv2d(12, 1, 1)

    def encode_query(self, image):
        key = self.query(image)
        return Query(key, key, key, key, key)

    def encode_memory(self, image, query, masks, *, object_chunk=None):
        B, K = masks.shape[:2]
        x = torch.cat([image[:, None].expand(-1, K, -1, -1, -1), masks[:, :, None]], dim=2)
        x = self.memory(x.flatten(0, 1)).unflatten(0, (B, K))
        return x[:, :, :8], x[:, :, 8:]

    def decode(self, readout, query):
        logits = self.output(readout.flatten(0, 1)).unflatten(0, readout.shape[:2])[:, :, 0]
        return 10 * F.interpolate(logits, scale_factor=16, mode='bilinear')


def run(network, images, masks, *, wanted=None, objects=None, **options):
    """Probabilities of every frame. masks: {frame: labels}."""
    core = InferenceCore(network, **options)
    outputs = [
        core.step(
            image,
            masks.get(t),
            (objects or {}).get(t),
            wanted=wanted is None or t in wanted,
            last=t == len(images) - 1,
        )
        for t, image in enumerate(images)
    ]
    return outputs, core


def run_whole(network, images, masks, *, mem_every, top_k=20):
    """What ``run`` gives, by the definition: one object at a time, whose memory is listed anew for each frame."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    H, W = images[0].shape[1:]
    top, left = (-H % 16) // 2, (-W % 16) // 2
    pad = (left, -W % 16 - left, top, -H % 16 - top)
    video = F.pad((torch.stack(images) / 255 - mean[:, None, None]) / std[:, None, None], pad)
    labels, joined, keys, values, outputs = [], [], [], [], []
    annotated = 0
    for t, frame in enumerate(video):
        query = network.encode_query(frame[None])
        prob = None
        if labels:
            probs = []
            for k, join in enumerate(joined):
                own = [
                    (key[0] if len(key) == 1 else key[k], value[k])
                    for time, key, value in zip(*keys_values(keys, values), strict=True)
                    if time >= join
                ]
                readout = dense_read(
                    torch.stack([key for key, _ in own]), torch.stack([value for _, value in own]), query.key[0], top_k
                )
                probs.append(network.decode(readout[None, None], query).sigmoid())
            prob = aggregate(torch.cat(probs, dim=1)).softmax(dim=1)
        if t in masks:
            mask = F.pad(masks[t], pad)
            old = [] if prob is None else list(prob[0, 1:])
            new = [label for label in mask.unique().tolist() if label]
            planes = [plane.masked_fill(mask > 0, 0) for plane in old]
            for label in new:
                if label not in labels:
                    labels.append(label)
                    joined.append(t)
                    planes.append(None)
                planes[labels.index(label)] = (mask == label).float()
            prob = aggregate(torch.stack(planes)[None]).softmax(dim=1)
            annotated = t
        if (t - annotated) % mem_every == 0:
            key, value = network.encode_memory(frame[None], query, prob[:, 1:])
            keys.append((t, key[0]))
            values.append(value[0])
        outputs.append(prob[0, :, top : top + H, left : left + W])
    return outputs


def keys_values(keys, values):
    return [time for time, _ in keys], [key for _, key in keys], values


@pytest.fixture
def later(first_mask):
    """Object 2 on frame 0; 7 appears on frame 3; 2 is corrected and 200 appears on frame 5."""
    second, third = torch.zeros_like(first_mask), torch.zeros_like(first_mask)
    second[60:90, 100:150] = 7
    third[20:70, 70:100] = 2
    third[:30, 140:] = 200
    return {0: 2 * (first_mask == 1).to(torch.uint8), 3: second, 5: third}


@pytest.mark.parametrize('toy', [False, True])
@pytest.mark.parametrize(
    'options', [{}, {'mem_every': 1, 'max_memory_frames': 4}, {'include_last': True, 'half_memory': True}]
)
@torch.inference_mode()
def test_another_core_goes_on(small_network, clip, later, toy, options):
    """After each frame, a new core continues bit for bit from the state, which is saved to a file and loaded."""
    network = PerObjectKeys() if toy else small_network
    expected, _ = run(network, clip, later, size=64, **options)
    core = InferenceCore(network, size=64, **options)
    for t, image in enumerate(clip):
        prob = core.step(image, later.get(t), last=t == len(clip) - 1)
        assert torch.equal(prob, expected[t])
        torch.save([core.state(), [core.memory.rows(slot) for slot in range(len(core.memory))]], file := io.BytesIO())
        file.seek(0)
        core = InferenceCore(network, size=64, **options)
        core.restore(*torch.load(file, weights_only=True))


@pytest.mark.parametrize('mem_every', [1, 2, 5])
@pytest.mark.parametrize('toy', [False, True])
@torch.inference_mode()
def test_streaming_equals_the_whole_video(small_network, clip, later, mem_every, toy):
    network = PerObjectKeys() if toy else small_network
    found, core = run(network, clip[:9], later, mem_every=mem_every)
    assert core.objects == [2, 7, 200]
    for prob, expected in zip(found, run_whole(network, clip[:9], later, mem_every=mem_every), strict=True):
        torch.testing.assert_close(prob, expected, **ROUNDING)


@torch.inference_mode()
def test_objects_at_once_equal_objects_one_by_one(clip, first_mask):
    """If the network does not see the others' masks, objects are independent up to the aggregation."""
    network = make_small_network(single_object=True)
    image = torch.rand(1, 3, 112, 192)
    query = network.encode_query(image)
    masks = torch.stack([F.pad(first_mask == k, (5, 5, 1, 1)) for k in (1, 2, 3)])[None].float()
    key, value = network.encode_memory(image, query, masks)
    bank = MemoryBank()
    bank.add(key[0], value[0])
    logits = network.decode(bank.read(query.key[0])[None], query)
    for k in range(3):
        key_k, value_k = network.encode_memory(image, query, masks[:, k : k + 1])
        torch.testing.assert_close(value_k[:, 0], value[:, k], atol=1e-4, rtol=1e-4)
        single = MemoryBank()
        single.add(key_k[0], value_k[0])
        found = network.decode(single.read(query.key[0])[None], query)
        torch.testing.assert_close(found[:, 0], logits[:, k], atol=1e-4, rtol=1e-4)


def test_object_chunks_change_nothing(small_network, clip, later):
    expected, _ = run(small_network, clip[:7], later)
    found, _ = run(small_network, clip[:7], later, object_chunk=2)
    for prob, other in zip(found, expected, strict=True):
        torch.testing.assert_close(prob, other, **ROUNDING)


@pytest.mark.parametrize('size', [(1, 1), (5, 9), (16, 16), (17, 31), (64, 15), (33, 100)])
def test_odd_and_tiny_frames(small_network, size):
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(3)]
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[0, 0] = 1
    probs, core = run(small_network, images, {0: mask}, mem_every=1)
    for prob in probs:
        assert prob.shape == (2, *size)
        torch.testing.assert_close(prob.sum(dim=0), torch.ones(size))
    assert torch.equal(core.to_labels(probs[0]), mask)


def test_video_of_one_frame(small_network, clip, first_mask):
    [prob], core = run(small_network, clip[:1], {0: first_mask})
    assert torch.equal(core.to_labels(prob), first_mask)
    assert len(core.memory) == 0  # the last frame need not be encoded


@pytest.mark.parametrize('size', [64, 200])
def test_working_size(small_network, clip, first_mask, size):
    probs, core = run(small_network, clip[:2], {0: first_mask}, size=size)
    assert probs[1].shape == (4, 110, 182)
    assert core._working_shape((110, 182)) == (size, size * 182 // 110)
    # The given mask survives the way to the working size and back, but for its outline.
    assert (core.to_labels(probs[0]) == first_mask).float().mean() > 0.97


def test_before_the_first_annotation_there_is_only_background(small_network, clip, first_mask):
    probs, core = run(small_network, clip[:4], {2: first_mask})
    assert [len(prob) for prob in probs] == [1, 1, 4, 4]
    assert torch.equal(core.to_labels(probs[0]), torch.zeros_like(first_mask))


def test_empty_mask_is_no_annotation(small_network, clip, first_mask):
    empty = torch.zeros_like(first_mask)
    probs, core = run(small_network, clip[:3], {0: empty})
    assert core.objects == []
    assert [len(prob) for prob in probs] == [1, 1, 1]
    expected, _ = run(small_network, clip[:9], {0: first_mask})
    found, _ = run(small_network, clip[:9], {0: first_mask, 2: empty})
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_object_without_pixels_that_is_listed_joins(small_network, clip, first_mask):
    probs, core = run(small_network, clip[:3], {0: (first_mask == 1).byte()}, objects={0: [1, 9]})
    assert core.objects == [1, 9]
    assert all(prob.isfinite().all() for prob in probs)


def test_object_that_vanishes_is_kept(small_network, clip, first_mask):
    """An object that a correction removes from a frame may come back, so its channel stays."""
    correction = {0: first_mask, 2: torch.zeros_like(first_mask)}
    probs, core = run(small_network, clip[:6], correction, objects={2: [2]})
    assert core.objects == [1, 2, 3]
    assert not (core.to_labels(probs[2]) == 2).any()
    assert all(len(prob) == 4 and prob.isfinite().all() for prob in probs)


def test_correction_replaces_the_mask_and_takes_pixels_from_others(small_network, clip, first_mask):
    correction = torch.where(first_mask == 3, 1, 0).byte()
    probs, core = run(small_network, clip[:3], {0: first_mask, 2: correction})
    labels = core.to_labels(probs[2])
    assert torch.equal(labels == 1, correction == 1)


def test_skipped_frames_change_nothing(small_network, clip, later):
    everything, _ = run(small_network, clip, later, mem_every=3)
    wanted = [1, 4, 10]
    images = [image if t in {0, 1, 3, 4, 5, 8, 10, 11} else None for t, image in enumerate(clip)]
    some, _ = run(small_network, images, later, wanted=wanted, mem_every=3)
    assert [t for t, prob in enumerate(some) if prob is not None] == wanted
    assert all(torch.equal(some[t], everything[t]) for t in wanted)


@pytest.mark.parametrize('object_chunk', [None, 7])
def test_fifty_objects_and_label_255(small_network, clip, object_chunk):
    labels = [*range(1, 98, 2), 255]
    assert len(labels) == 50
    mask = torch.zeros(110, 182, dtype=torch.uint8)
    for index, label in enumerate(labels):
        row, column = divmod(index, 10)
        mask[22 * row + 2 : 22 * row + 20, 18 * column + 2 : 18 * column + 16] = label
    probs, core = run(small_network, clip[:3], {0: mask}, object_chunk=object_chunk)
    assert core.objects == labels
    assert torch.equal(core.to_labels(probs[0]), mask)
    assert probs[2].shape == (51, 110, 182)
    torch.testing.assert_close(probs[2].sum(dim=0), torch.ones(110, 182))


def test_bounded_memory_keeps_the_annotated_frames(small_network, clip, first_mask):
    images = [clip[t % 12][:, 40:72, 60:108] for t in range(300)]
    first = first_mask[40:72, 60:108]
    masks = {0: first, 100: 9 * (first == first.max()).byte()}
    core = InferenceCore(small_network, mem_every=2, max_memory_frames=10, num_frames=300)
    annotated = []
    for t, image in enumerate(images):
        core.step(image, masks.get(t), last=t == 299)
        if t in masks:
            slot = core.memory.permanent - 1
            annotated.append(core.memory._shared_keys.rows.buffer[slot * 6 : (slot + 1) * 6].clone())
        assert len(core.memory) <= 10
    kept = core.memory._shared_keys.rows.buffer[:60].unflatten(0, (10, 6))
    assert core.memory.eviction.protected.count(True) == 2
    assert torch.equal(kept[0], annotated[0])
    assert any(torch.equal(frame, annotated[1]) for frame in kept)


@pytest.mark.parametrize('toy', [False, True])
@pytest.mark.parametrize('options', [{}, {'include_last': True}, {'max_memory_frames': 2}])
def test_object_that_comes_later_does_not_pay_for_those_that_left(small_network, clip, later, toy, options):
    network = PerObjectKeys() if toy else small_network
    core, fresh = (InferenceCore(network, mem_every=2, num_frames=12, **options) for _ in range(2))
    for t, image in enumerate(clip):
        if t == 5:
            with pytest.raises(InputError, match=r'one of the objects \[2, 7\], found 3'):
                core.remove(3)
            core.remove(7)
            assert core.objects == [2]
            core.remove(2)
            assert core.objects == []
            assert core.memory.nbytes == 0
        found = core.step(image, later.get(t) if t < 4 else {7: later[5]}.get(t), last=t == 11)
        if t in (5, 6):
            assert torch.equal(found, torch.ones(1, 110, 182))
        if t >= 7:
            expected = fresh.step(image, later[5] if t == 7 else None, last=t == 11)
            assert torch.equal(found, expected)
            assert core.objects == fresh.objects == [2, 200]
            assert core.memory.nbytes == fresh.memory.nbytes


@pytest.mark.parametrize('toy', [False, True])
def test_object_that_leaves_takes_its_memory_with_it(small_network, clip, later, toy):
    """Object 2 is there from frame 0 on, 7 from frame 3 on; 2 leaves before frame 4 and is a new object at 5."""
    network = PerObjectKeys() if toy else small_network
    core = InferenceCore(network, mem_every=1)
    before, kept = 0, []
    for t, image in enumerate(clip[:9]):
        if t == 4:
            before, both = core.memory.nbytes, core.objects
            core.remove(2)
            assert both == [2, 7]  # a list that was handed out stays as it is
            assert len(core.memory) == 1
            assert core.memory.nbytes < before / 2
        kept.append(core.step(image, later.get(t)))
    assert core.objects == [7, 2, 200]
    assert [len(prob) for prob in kept] == [2, 2, 2, 3, 2, 4, 4, 4, 4]
    expected, _ = run(network, clip[:9], later, mem_every=1)
    assert all(torch.equal(kept[t], expected[t]) for t in range(4))
    # An annotated frame has the annotated mask, also after an object left; later frames have no reference here.
    assert torch.equal(core.to_labels(kept[5]) == 200, later[5] == 200)
    assert all(prob.isfinite().all() for prob in kept)


def test_confidence(small_network, clip, later):
    core = InferenceCore(small_network)
    for t, image in enumerate(clip[:6]):
        prob = core.step(image, later.get(t))
        sure = core.confidence(prob)
        assert list(sure) == core.objects
        assert all(0 < value <= 1 for value in sure.values())
        if t in later:  # the core is sure of exactly the objects whose masks are given
            given = set(later[t].unique().tolist())
            assert {label for label, value in sure.items() if value > 0.999} == given - {0}


def test_probabilities_of_other_objects_are_refused(small_network, clip, later):
    core = InferenceCore(small_network)
    kept = [core.step(image, later.get(t)) for t, image in enumerate(clip[:6])][-1]
    core.remove(core.objects[0])
    for ask in (core.confidence, core.to_labels):
        for wrong in (kept, None, kept[0]):
            with pytest.raises(InputError, match='prob: expected what the last step returned'):
                ask(wrong)


def test_expected_iou():
    prob = torch.zeros(3, 100, 100)
    prob[1, :10, :50] = 0.9  # 500 pixels in the mask, 100 more around it
    prob[1, 10:12, :50] = 0.4
    prob[2, 50:60, :30] = 1.0  # 300 pixels, and 100 that lie apart
    prob[2, 80:90, 80:90] = 1.0
    prob[0] = 1 - prob[1:].sum(dim=0)
    least = 1e-3 * 100 * 100
    expected = [(450 + least) / (500 + 40 + least), (300 + least) / (400 + least)]
    assert expected_iou(prob).tolist() == pytest.approx(expected)
    nowhere = torch.tensor([1 - 2e-7, 1e-7, 1e-7])[:, None, None].expand(3, 100, 100)
    assert expected_iou(nowhere).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert expected_iou(torch.ones(1, 100, 100)).tolist() == []


def test_schedule():
    def plan(count, annotated, wanted=None, **options):
        schedule = Schedule(**options)
        steps = [
            schedule.advance(annotated=t in annotated, wanted=wanted is None or t in wanted, last=t == count - 1)
            for t in range(count)
        ]
        return ''.join('-' if not s.compute else '.' if not s.memorise else 'P' if s.permanent else 'T' for s in steps)

    assert plan(12, {0}) == 'P....P....P.'
    assert plan(11, {0}) == 'P....P.....'  # the last frame is not memorised
    assert plan(12, {0, 3}, mem_every=5) == 'P..P....P...'
    assert plan(8, {0}, include_last=True, mem_every=3) == 'PTTPTTP.'
    assert plan(12, {2}, wanted={0, 4, 11}) == '--P-.--P---.'
    assert plan(12, {2}, wanted={0, 4}) == '--P-.--P----'
    assert plan(8, {0, 5}, mem_every=None) == 'P....P..'  # the annotated ones only
    assert plan(8, {0}, mem_every=None, include_last=True) == 'PTTTTTT.'  # the first and the last
    assert plan(8, {2}, wanted={6}, mem_every=None) == '--P---.-'


def test_first_and_last_is_a_memory_of_two_frames(small_network, clip, first_mask):
    _, core = run(small_network, clip[:6], {0: first_mask}, mem_every=None, include_last=True, num_frames=6)
    assert len(core.memory) == core.memory.capacity == 2
    first_only, core = run(small_network, clip[:6], {0: first_mask}, mem_every=None)
    assert len(core.memory) == 1
    rare, _ = run(small_network, clip[:6], {0: first_mask}, mem_every=100)
    assert all(torch.equal(a, b) for a, b in zip(first_only, rare, strict=True))


def test_kernel_reaches_the_memory(small_network, clip, first_mask):
    expected, _ = run(small_network, clip[:3], {0: first_mask})
    found, _ = run(small_network, clip[:3], {0: first_mask}, kernel_sigma=1)
    assert not torch.allclose(found[-1], expected[-1], atol=1e-3)
    with pytest.raises(ValueError, match='kernel_sigma'):
        InferenceCore(small_network, kernel_sigma=-1)


def test_compiled_network_is_the_same(clip, first_mask, monkeypatch):
    """The backend runs the captured graphs as they are, since testing the compiler itself is left to torch."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='eager'))
    masks = {0: first_mask.where(first_mask < 3, 0), 2: first_mask}
    expected, _ = run(make_small_network(), clip[:4], masks, mem_every=2)
    found, _ = run(make_small_network().compile_(), clip[:4], masks, mem_every=2)
    for prob, other in zip(found, expected, strict=True):
        torch.testing.assert_close(prob, other, atol=1e-5, rtol=0)


def test_network_made_ready_is_the_same(clip, later):
    """Batch norm folded, weights in another memory format: what every script does before it segments."""
    network = make_small_network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    expected, _ = run(network, clip[:7], later, mem_every=2)
    found, _ = run(network.optimize_(), clip[:7], later, mem_every=2)
    for prob, other in zip(found, expected, strict=True):
        torch.testing.assert_close(prob, other, **ROUNDING)


def test_half_memory_stays_close(small_network, clip, first_mask):
    expected, _ = run(small_network, clip[:6], {0: first_mask}, mem_every=1)
    found, core = run(small_network, clip[:6], {0: first_mask}, mem_every=1, half_memory=True)
    assert 0 < max(float((prob - other).abs().max()) for prob, other in zip(found, expected, strict=True)) < 1e-2
    assert core.memory._groups[0].values.buffer.dtype == torch.half


def test_amp_stays_close(clip, first_mask):
    network = make_small_network()
    expected, _ = run(network, clip[:4], {0: first_mask})
    found, core = run(network, clip[:4], {0: first_mask}, amp=True)
    assert found[-1].dtype == torch.float32
    assert (core.to_labels(found[-1]) == core.to_labels(expected[-1])).float().mean() > 0.95


def test_float_images_are_as_good_as_uint8(small_network, clip, first_mask):
    expected, _ = run(small_network, clip[:3], {0: first_mask})
    found, _ = run(small_network, [image / 255 for image in clip[:3]], {0: first_mask})
    torch.testing.assert_close(found[-1], expected[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ('image', 'mask', 'message'),
    [
        (torch.zeros(1, 8, 8, dtype=torch.uint8), None, r'image: expected \[3, H, W\]'),
        (torch.zeros(3, 8, 8, dtype=torch.int64), None, 'image: expected uint8 or float'),
        (torch.zeros(3, 8, 9, dtype=torch.uint8), None, 'size of the frames before'),
        (torch.zeros(3, 8, 8), torch.zeros(8, 9, dtype=torch.uint8), 'mask: expected the size of its image'),
        (torch.zeros(3, 8, 8), torch.zeros(8, 8), 'mask: expected integer labels'),
        (torch.zeros(3, 8, 8), torch.full((8, 8), 256), 'labels are 1 to 255'),
        (None, None, 'its image is None'),
    ],
)
def test_bad_input_leaves_the_core_as_it_was(small_network, image, mask, message):
    core = InferenceCore(small_network)
    core.step(torch.zeros(3, 8, 8), torch.ones(8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=message):
        core.step(image, mask)
    assert core.step(torch.zeros(3, 8, 8)).shape == (2, 8, 8)
    assert core.schedule.time == 1


def test_an_object_of_the_last_frame_can_be_removed(small_network, first_mask):
    """The last frame does not go into the memory, so that an object that begins there is not in the memory either."""
    core = InferenceCore(small_network)
    image = torch.zeros(3, *first_mask.shape)
    core.step(image, torch.where(first_mask == 1, 1, 0))
    core.step(image, torch.where(first_mask == 2, 2, 0), last=True)
    assert core.objects == [1, 2]
    core.remove(2)
    assert core.objects == [1]
    assert core.memory.num_objects == 1


def test_labels_without_a_mask(small_network):
    with pytest.raises(InputError, match='without a mask'):
        InferenceCore(small_network).step(torch.zeros(3, 8, 8), objects=[1])


@pytest.mark.parametrize('place', ['encode_memory', '_to_frame'])
def test_a_frame_that_failed_can_be_given_again(place, clip, first_mask, monkeypatch):
    network = make_small_network()
    expected, _ = run(network, clip[:3], {0: first_mask})
    core = InferenceCore(network)
    with monkeypatch.context() as patch:

        def fail(*args, **options):
            raise torch.OutOfMemoryError

        patch.setattr(network if hasattr(network, place) else core, place, fail)
        with pytest.raises(torch.OutOfMemoryError):
            core.step(clip[0], first_mask)
    assert core.objects == []
    found = [core.step(image, first_mask if t == 0 else None, last=t == 2) for t, image in enumerate(clip[:3])]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match='memory is empty'):
        MemoryBank().read(torch.zeros(4, 2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu_equals_cpu(clip, later):
    expected, _ = run(make_small_network(), clip, later)
    found, _ = run(make_small_network().cuda(), clip, later)
    for prob, other in zip(found, expected, strict=True):
        torch.testing.assert_close(prob.cpu(), other, atol=5e-3, rtol=0)
