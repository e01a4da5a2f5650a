"""scripts/export.py, and examples/onnx_video.py on what it writes, against the network and the core in PyTorch."""

import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.io import list_frames, read_image, read_mask, write_mask
from inference import InferenceCore, load_model
from inference.memory_bank import MemoryBank
from model import STCNConfig, STMConfig, build_network, save_network
from scripts import export
from tests.conftest import APPEARING, FRAMES, GOLDEN, REPOSITORY, make_small_network
from util.errors import MissingPackageError

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

EXAMPLE = runpy.run_path(str(REPOSITORY / 'examples' / 'onnx_video.py'))
FILES = ('decode.onnx', 'encode_memory.onnx', 'encode_query.onnx', 'read.onnx')
SMALL = {'key_dim': 16, 'value_dim': 32}
CONFIGS = {
    'stcn': STCNConfig('resnet18', 'resnet18', decoder_widths=(32, 16), **SMALL),
    # As in stcn_light, the fused features have as many channels as the values.
    'light': STCNConfig('mobilenet_v2', 'mobilenet_v2', key_dim=16, value_dim=192, decoder_widths=(32, 16)),
    'aspp': STCNConfig('resnet18', 'resnet18', decoder_widths=(32, 16), aspp_dim=32, fusion_attention=False, **SMALL),
    'dot': STCNConfig('resnet18', 'resnet18', decoder_widths=(32, 16), similarity='dot', **SMALL),
    'stm': STMConfig('resnet18', 'resnet18', decoder_width=16, **SMALL),
}


def exported(folder, *flags, checkpoint):
    assert export.main(['--model', str(checkpoint), '--output', str(folder), *map(str, flags)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == list(FILES)
    return folder


@pytest.fixture(scope='module')
def folder(small_checkpoint, tmp_path_factory):
    return exported(tmp_path_factory.mktemp('onnx') / 'small', checkpoint=small_checkpoint)


@pytest.mark.parametrize(('name', 'top'), [*((name, 20) for name in CONFIGS), ('stcn', 0), ('stm', 0)])
def test_functions_are_those_of_the_network_for_all_sizes(name, top, tmp_path, one_thread):
    torch.manual_seed(0)
    network = build_network(CONFIGS[name]).eval()
    save_network(tmp_path / 'network.pth', network)
    functions = EXAMPLE['Network'](exported(tmp_path / 'onnx', '--top', top, checkpoint=tmp_path / 'network.pth'))

    def compare(found, expected):
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)

    # The last memory has fewer positions than are read.
    for height, width, objects, frames in ((48, 80, 2, 2), (64, 32, 5, 6), (16, 48, 1, 3)):
        bank = MemoryBank(shared_keys=network.shared_keys, metric=network.similarity, top_k=top or None)
        keys, values = [], []
        with torch.inference_mode():
            for _ in range(frames):
                image, masks = torch.randn(1, 3, height, width), torch.rand(1, objects, height, width)
                query = network.encode_query(image)
                key, value = network.encode_memory(image, query, masks)
                bank.add(key[0], value[0])
                inputs = {'image': image, 'masks': masks, **query._asdict()}
                inputs = {name: each.numpy() for name, each in inputs.items()}
                found = functions.encode_query(image=image.numpy()) | functions.encode_memory(**inputs)
                for each, expected in (query._asdict() | {'memory_key': key, 'memory_value': value}).items():
                    compare(found[each], expected)
                keys.append(found['memory_key'])
                values.append(found['memory_value'])
            readout = bank.read(query.key[0])[None]
            memory = {'memory_key': np.concatenate(keys), 'memory_value': np.concatenate(values)}
            compare(functions.read(key=found['key'], **memory)['readout'], readout)
            compare(functions.decode(readout=readout.numpy(), **inputs)['logits'], network.decode(readout, query))


def segmented(model, masks, output):
    """The labels of all frames of the golden clip ``[12, H, W]``, by the example."""
    flags = ['--model', model, '--input', GOLDEN / 'clip', '--mask', masks, '--output', output]
    EXAMPLE['main']([*map(str, flags)])
    return np.stack([np.asarray(Image.open(output / f'{frame.stem}.png')) for frame in FRAMES])


def by_the_core(checkpoint, clip, masks, **options):
    core = InferenceCore(load_model(checkpoint, device='cpu'), **options)
    last = len(clip) - 1
    return np.stack(
        [
            core.to_labels(core.step(image, masks.get(time), last=time == last)).numpy()
            for time, image in enumerate(clip)
        ]
    )


@pytest.fixture(scope='module')
def appearing():
    """The golden masks by frame: objects with the labels of ``APPEARING``, each from another frame on."""
    return {
        frame: torch.from_numpy(read_mask(GOLDEN / 'appearing' / f'{frame:05}.png')) for frame in APPEARING.values()
    }


@pytest.mark.parametrize(
    ('name', 'flags', 'options'),
    [
        ('stcn', (), {}),
        ('stcn', ('--mem_every', 3, '--include_last', '--top', 7), {'mem_every': 3, 'include_last': True, 'top_k': 7}),
        ('stcn', ('--size', 72), {'size': 72}),
        ('stcn', ('--size', 131, '--mem_every', 'none'), {'size': 131, 'mem_every': None}),
        ('stm', ('--include_last',), {'include_last': True}),
    ],
)
def test_example_segments_as_the_core_does(name, flags, options, tmp_path, clip, appearing, one_thread):
    """Objects appear later, and frames have a size that has to be padded."""
    torch.manual_seed(0)
    network = make_small_network() if name == 'stcn' else build_network(CONFIGS[name]).eval()
    if name == 'stm':
        torch.nn.init.normal_(network.Decoder.pred2.weight, std=0.3)
    save_network(tmp_path / 'network.pth', network)
    model = exported(tmp_path / 'onnx', *flags, checkpoint=tmp_path / 'network.pth')
    found = segmented(model, GOLDEN / 'appearing', tmp_path / 'out')
    expected = by_the_core(tmp_path / 'network.pth', clip, appearing, **options)
    assert {*np.unique(expected[-1])} == {0, *APPEARING}
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize('objects', [1, 5])
def test_one_export_serves_any_number_of_objects(objects, folder, small_checkpoint, tmp_path, clip, one_thread):
    mask = np.zeros(clip[0].shape[1:], np.uint8)
    mask[30:80, 20:160] = 1 + np.arange(140) * objects // 140
    write_mask(tmp_path / 'first.png', mask)
    found = segmented(folder, tmp_path / 'first.png', tmp_path / 'out')
    expected = by_the_core(small_checkpoint, clip, {0: torch.from_numpy(mask)})
    assert (found[0] == mask).all()
    assert (found == expected).mean() > 0.999
    assert len(np.unique(expected[-1])) > objects / 2


WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(['torch', 'cv2', 'model', 'dataset', 'inference', 'training', 'util', 'scripts']))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_example_needs_no_pytorch(folder, tmp_path):
    for frame in FRAMES[:2]:
        shutil.copy(frame, tmp_path)
    mask, output = GOLDEN / 'appearing' / '00000.png', tmp_path / 'out'
    command = [sys.executable, '-c', WITHOUT_TORCH, 'examples/onnx_video.py', '--model', folder]
    command += ['--input', tmp_path, '--mask', mask, '--output', output]
    subprocess.run([*map(str, command)], cwd=REPOSITORY, check=True, timeout=300)
    assert sorted(each.name for each in output.iterdir()) == ['00000.png', '00001.png']
    assert (np.asarray(Image.open(output / '00000.png')) == read_mask(mask)).all()


def test_half(folder, small_checkpoint, tmp_path, clip, appearing, one_thread):
    half = exported(tmp_path / 'half', '--half', checkpoint=small_checkpoint)
    assert sum(each.stat().st_size for each in half.iterdir()) < 0.6 * sum(
        each.stat().st_size for each in folder.iterdir()
    )
    found = segmented(half, GOLDEN / 'appearing', tmp_path / 'out')
    assert (found == by_the_core(small_checkpoint, clip, appearing)).mean() > 0.98


def test_light_network_is_at_most_12_megabytes(tmp_path):
    assert export.main(['--half', '--output', str(tmp_path / 'light')]) == 0
    assert sum(each.stat().st_size for each in (tmp_path / 'light').iterdir()) < 12e6


def test_metadata_say_what_a_file_is_and_what_the_checkpoint_recommends(small_network, tmp_path):
    save_network(tmp_path / 'network.pth', small_network, recommended={'mem_every': 2, 'size': 64})
    model = exported(tmp_path / 'onnx', '--top', '7', checkpoint=tmp_path / 'network.pth')
    for file in FILES:
        found = onnx.load(model / file)
        about = {each.key: json.loads(each.value) for each in found.metadata_props}
        assert about['function'] == file.removesuffix('.onnx')
        assert [*about['tensors']] == [each.name for each in (*found.graph.input, *found.graph.output)]
        inference = {name: about['inference'][name] for name in ('top_k', 'mem_every', 'size', 'enlarge')}
        assert inference == {'top_k': 7, 'mem_every': 2, 'size': 64, 'enlarge': False}


def test_export_is_whole_or_not_there(small_checkpoint, tmp_path, monkeypatch):
    flags = ['--model', str(small_checkpoint), '--output', str(tmp_path / 'out')]
    write, calls = torch.onnx.export, []

    def fail_at_the_third(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise OSError('disk full')
        write(*args, **options)

    monkeypatch.setattr(torch.onnx, 'export', fail_at_the_third)
    with pytest.raises(OSError, match='disk full'):
        export.main(flags)
    assert not [*tmp_path.iterdir()]

    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine').write_text('mine')
    with pytest.raises(OSError, match='exists already'):
        export.main(flags)
    assert (tmp_path / 'out' / 'mine').read_text() == 'mine'

    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(MissingPackageError, match=r'requirements-extras\.txt'):
        export.main([*flags[:-1], str(tmp_path / 'other')])


def test_example_names_a_file_that_is_missing_or_not_the_networks(folder, tmp_path):
    other = make_small_network()
    torch.nn.init.zeros_(other.decoder.pred.bias)
    save_network(tmp_path / 'other.pth', other)
    other = exported(tmp_path / 'other', checkpoint=tmp_path / 'other.pth')

    def error(change):
        mixed = tmp_path / 'mixed'
        shutil.rmtree(mixed, ignore_errors=True)
        shutil.copytree(folder, mixed)
        change(mixed)
        with pytest.raises(SystemExit) as raised:
            EXAMPLE['main'](
                ['--model', str(mixed), '--input', str(GOLDEN / 'clip'), '--mask', str(GOLDEN / 'appearing')]
                + ['--output', str(tmp_path / 'out')]
            )
        assert not (tmp_path / 'out').exists()
        assert len(str(raised.value).splitlines()) == 1
        return str(raised.value)

    def replace(name, content):
        return lambda mixed: (mixed / name).write_bytes(content)

    another = (other / 'decode.onnx').read_bytes()
    assert 'decode.onnx: is not decode of the same network' in error(replace('decode.onnx', another))
    assert 'read.onnx: is not read of' in error(replace('read.onnx', (folder / 'decode.onnx').read_bytes()))
    assert 'read.onnx: cannot be loaded' in error(replace('read.onnx', b'no model'))
    assert 'encode_memory.onnx: cannot be loaded' in error(lambda mixed: (mixed / 'encode_memory.onnx').unlink())


def test_example_names_a_mask_that_fits_no_frame(folder, tmp_path):
    def error(mask):
        with pytest.raises(SystemExit) as raised:
            EXAMPLE['main'](
                ['--model', str(folder), '--input', str(GOLDEN / 'clip'), '--mask', str(mask)]
                + ['--output', str(tmp_path / 'out')]
            )
        return str(raised.value)

    (tmp_path / 'masks').mkdir()
    assert 'no masks' in error(tmp_path / 'masks')
    write_mask(tmp_path / 'masks' / 'nobody.png', np.ones((110, 182), np.uint8))
    assert 'nobody.png: expected' in error(tmp_path / 'masks')
    write_mask(tmp_path / 'small.png', np.ones((110, 181), np.uint8))
    assert 'another size' in error(tmp_path / 'small.png')
    assert not (tmp_path / 'out').exists()


def test_example_names_a_broken_frame_and_a_folder_that_is_there(folder, tmp_path):
    def error(output):
        with pytest.raises(SystemExit) as raised:
            EXAMPLE['main'](
                ['--model', str(folder), '--input', str(tmp_path / 'clip'), '--mask', str(GOLDEN / 'first_mask.png')]
                + ['--output', str(output)]
            )
        return str(raised.value)

    shutil.copytree(GOLDEN / 'clip', tmp_path / 'clip')
    broken = sorted((tmp_path / 'clip').iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:900])
    assert f'{broken}: cannot be read' in error(tmp_path / 'out')
    assert [path.stem for path in (tmp_path / 'out').iterdir()] == ['00000']
    assert 'out: exists already; delete it' in error(tmp_path / 'out')


def test_the_example_reads_frames_as_the_scripts_do(tmp_path):
    for name in ('10.png', '9.png', 'b2.png', 'b10.png'):
        (tmp_path / name).touch()
    names = [path.name for path in sorted(tmp_path.iterdir(), key=EXAMPLE['by_numbers'])]
    assert names == [path.name for path in list_frames(tmp_path)]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20).save(tmp_path / 'turned.png', exif=exif)
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(tmp_path / 'deep.png')
    for name in ('turned.png', 'deep.png'):
        assert np.array_equal(EXAMPLE['read_frame'](tmp_path / name), read_image(tmp_path / name))
