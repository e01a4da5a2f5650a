"""What users type, download or start in a wrong way gives one line: what was found, where, and what to do."""

import gzip
import logging
import os
import re
import socket
import subprocess
import sys
from multiprocessing import synchronize
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.davis import davis
from dataset.io import DataError
from dataset.video import find_main, find_youtube
from inference import InferenceCore, InputError, load_model
from inference.sources import DatasetSource
from inference.stream import propagate
from model import CheckpointError
from scripts import web
from tests.conftest import REPOSITORY
from tests.helpers import free_port, make_zip
from training.run import LoadingProcessError
from util.cli import run_main
from util.distributed import choose_device
from util.errors import UserError
from util.ranks import rank


def ended(main) -> str:
    """The message of a script that ends with an error."""
    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code not in (0, None)
    return str(end.value.code)


# Devices


@pytest.mark.parametrize('name', ['gpu', 'cuda:x', 'cuda:97', '0', '', 'meta'])
def test_a_device_that_is_not_there(name):
    if not name:
        assert choose_device(name).type in ('cpu', 'cuda')
        return
    with pytest.raises(UserError, match=rf'^{name}: expected a device of this computer \(cpu.*\), found none'):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this computer has a GPU')
@pytest.mark.parametrize('name', ['cuda', 'cuda:0'])
def test_no_gpu(name, small_checkpoint):
    with pytest.raises(UserError, match=r'^cuda:0: expected a device of this computer \(cpu'):
        load_model(small_checkpoint, device=name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason='this computer is a Mac')
@pytest.mark.parametrize(('fallback', 'said'), [('1', 'is computed on the CPU'), ('0', 'is an error, unless PYTORCH')])
def test_the_default_on_a_mac(fallback, said, monkeypatch, caplog):
    """The device that is asked for is mps, as the error shows, since this PyTorch does not have it."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setenv('PYTORCH_ENABLE_MPS_FALLBACK', fallback)
    with pytest.raises(UserError, match=r'^mps: expected a device of this computer \(cpu, mps\), found none'):
        choose_device(None)
    [message] = caplog.messages
    assert 'nothing was tested' in message
    assert said in message
    assert choose_device('cpu').type == 'cpu'


def test_scripts_compute_on_the_cpu_what_a_mac_lacks():
    """PyTorch looks at the environment when it is imported: scripts have set it by then."""
    program = (
        'import os, sys\n'
        'from util.cli import run_main\n'
        'import scripts.segment_video\n'
        'assert "torch" not in sys.modules\n'
        'run_main(lambda: print(os.environ["PYTORCH_ENABLE_MPS_FALLBACK"]))\n'
    )
    environment = {name: value for name, value in os.environ.items() if name != 'PYTORCH_ENABLE_MPS_FALLBACK'}
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, '1\n'), done.stderr


# Launchers


@pytest.mark.parametrize('flag', ['--local-rank=0', '--local_rank=3'])
def test_launchers_that_say_the_rank_in_a_flag(monkeypatch, flag):
    monkeypatch.setattr(sys, 'argv', ['train.py', flag, '--id', '--local-rank', 'x'])
    with pytest.raises(SystemExit) as end:
        run_main(lambda: 0)
    assert end.value.code == 0
    assert sys.argv == ['train.py', '--id', '--local-rank', 'x']


@pytest.mark.parametrize('words', [['--local-rank', '0'], ['--local_rank', '12', '--local-rank=0']])
def test_launchers_that_say_the_rank_in_two_words(monkeypatch, words):
    monkeypatch.setattr(sys, 'argv', ['train.py', '--id', 'a b', *words, '', '-i', '1'])
    with pytest.raises(SystemExit) as end:
        run_main(lambda: 0)
    assert end.value.code == 0
    assert sys.argv == ['train.py', '--id', 'a b', '', '-i', '1']


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        ({'RANK': 'x'}, 'RANK=x in the environment: expected a number'),
        ({'WORLD_SIZE': 'two'}, 'WORLD_SIZE=two in the environment: expected a number'),
        ({'RANK': '1'}, 'RANK=1 in .*: expected a number below WORLD_SIZE=1'),
        ({'WORLD_SIZE': '2'}, 'WORLD_SIZE=2 in .*: expected RANK, MASTER_ADDR, MASTER_PORT beside it'),
    ],
)
def test_an_environment_of_no_launcher(monkeypatch, environment, message):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf'^{message}.*(torchrun|unset)'):
        rank()


def test_the_launcher_of_the_release(tmp_path):
    launch = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.launch', '--nproc_per_node=1']
    done = subprocess.run(
        [*launch, f'--master_port={free_port()}', REPOSITORY / 'scripts' / 'evaluate.py', '--results', tmp_path]
        + ['--root', tmp_path, '--dataset', 'folder'],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert 'Annotations: expected ground truth' in done.stderr
    assert 'unrecognized' not in done.stderr


# Shared memory


@pytest.mark.parametrize(
    'error',
    [
        RuntimeError('unable to allocate shared memory(shm) for file </torch_7_4_0>: No space left on device (28)'),
        RuntimeError('unable to write to file </torch_7_4_0>: No space left on device (28)'),
        LoadingProcessError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            'out of shared memory. Please try to raise your shared memory limit. A process has died.'
        ),
    ],
)
def test_too_little_shared_memory(monkeypatch, error):
    """The errors are those of three versions of PyTorch."""
    monkeypatch.delenv('STCN_TRACEBACK', raising=False)

    def main():
        raise error

    message = ended(main)
    assert re.search(r'--shm-size=\w+ or --ipc=host\. --num_workers 0', message)
    assert len(message.splitlines()) == 1


def test_no_shared_memory_for_locks(monkeypatch):
    """If /dev/shm is read-only or full, a process fails at its first lock, with nothing but an error number."""
    monkeypatch.delenv('STCN_TRACEBACK', raising=False)

    where = Path(synchronize.__file__)
    locking = compile("raise OSError(30, 'Read-only file system')", where, 'exec')
    assert 'too little shared memory' in ended(lambda: exec(locking))


def test_other_errors_are_not_blamed_on_shared_memory(monkeypatch):
    monkeypatch.delenv('STCN_TRACEBACK', raising=False)
    for error in (OSError(28, 'No space left on device', 'out/a.png'), UserError('x.png: found nothing')):

        def main(error=error):
            raise error

        assert ended(main) == f'error: {error}'


@pytest.mark.skipif(
    sys.platform != 'linux'
    or subprocess.run(['unshare', '-m', 'true'], capture_output=True, check=False).returncode != 0,
    reason='needs to mount a file system',
)
def test_training_in_a_container(tmp_path):
    """With 64 KB of shared memory, far less than a container's 64 MB, so that one small sample is too large."""
    rng = np.random.default_rng(0)
    (tmp_path / 'static' / 'mine').mkdir(parents=True)
    for number in range(3):
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        image.save(tmp_path / 'static' / 'mine' / f'{number}.jpg')
        Image.fromarray(255 * np.eye(64, dtype=np.uint8)).save(tmp_path / 'static' / 'mine' / f'{number}.png')
    arguments = '--stage 0 --id NULL --backbone_weights none --arch stcn_light -b 2 -i 1 --num_workers 1 --device cpu'
    script = f'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" "$1" --static_root "$2" {arguments}'
    done = subprocess.run(
        ['unshare', '-m', 'bash', '-c', script, sys.executable, REPOSITORY / 'train.py', tmp_path / 'static'],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != 'STCN_TRACEBACK'},
    )
    if 'mount:' in done.stderr:
        pytest.skip('may not mount a file system')
    assert '--shm-size=8g' in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


# The page


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf'^port {port}: expected a free port .*; choose another --port$'):
            web.check_port(port)
    web.check_port(port)
    with pytest.raises(UserError, match='port 70000: expected a free port'):
        web.check_port(70000)


# Checkpoints


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>', 'found a web page'),
        (b'\n  <html lang="en">', 'found a web page'),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'found a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', r"git-lfs\. .* with 'git lfs pull'"),
        (b'\xef\xbb\xbf\n <!doctype html>', 'found a web page'),
        ('<html>'.encode('utf-16'), 'found a web page'),
        (b'', 'found an empty file'),
        (b'404: Not Found', "found text.*'404: Not Found'"),
        (b'{"error": "quota"}\n', 'found text.*quota'),
        (gzip.compress(b'<html>', mtime=0), 'packed by gzip'),
        (b'PK\x03\x04' + bytes(60), 'only the beginning'),
        (make_zip({'stcn.pth': b'x'}), r'an archive of other files \(stcn\.pth\)'),
        (make_zip({'m/data.pkl': b'x', 'm/constants.pkl': b'x'}), 'TorchScript'),
        (b'\x93NUMPY\x01\x00' + bytes(60), 'numpy'),
        (b'\x10\0\0\0\0\0\0\0{"a":{"dtype":1}}', 'safetensors'),
        (b'\x08\x07\x12\x07pytorch\x1a\x052.0.0', 'objects other than tensors|unreadable'),
    ],
)
def test_downloads_that_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / 'stcn.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'^{path}: .*({message})') as error:
        load_model(path, device='cpu')
    assert len(str(error.value).splitlines()) == 1
    assert 'weights_only' not in str(error.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'conv1.weight': torch.zeros(3), 'fc.bias': torch.zeros(3)}, 'STCN or STM, found those of another network'),
        ({'state_dict': {'conv1.weight': torch.zeros(3)}}, 'no tensors.* under "network", found .*\'state_dict\''),
    ],
)
def test_checkpoints_of_other_programs(tmp_path, content, message):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(tmp_path / 'other.pth', device='cpu')
    assert len(str(error.value).splitlines()) == 1


class Unknown:
    """An object of one's own, as in a pickled module."""


def test_pickled_objects(tmp_path):
    path = tmp_path / 'module.pth'
    torch.save(Unknown(), path)
    with pytest.raises(CheckpointError, match=rf'^{path}: expected a checkpoint, found objects .*state_dict') as error:
        load_model(path, device='cpu')
    assert '\x1b' not in str(error.value)
    assert 'weights_only' not in str(error.value)


# Data sets


def test_youtube_as_downloaded(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / 'train' / 'JPEGImages' / 'v').mkdir(parents=True)
    with pytest.raises(DataError, match=rf'train_480p: expected .*convert\.py youtube --root {tmp_path}'):
        find_youtube(tmp_path)
    with pytest.raises(DataError, match=r'convert\.py youtube'):
        find_main(tmp_path / 'nowhere', tmp_path)
    (tmp_path / 'train_480p').mkdir()
    with pytest.raises(DataError, match=r'convert\.py youtube'):
        find_youtube(tmp_path)
    with pytest.raises(DataError, match=rf'found that {tmp_path}/train has them itself'):
        find_youtube(tmp_path / 'train')
    (tmp_path / 'train_480p' / 'JPEGImages').mkdir()
    (tmp_path / 'train_480p' / 'Annotations').mkdir()
    caplog.clear()
    assert find_youtube(tmp_path) == []
    assert re.search(rf'lacks 1 of the videos in .*: v\. .*--root {tmp_path}. converts the rest', caplog.text)


# Frames


def test_a_frame_of_another_size_names_its_file(davis_root, small_network):
    [video, _] = davis(davis_root)
    frame = video.frames[2]
    with Image.open(frame.image) as image:
        image.resize((image.width + 2, image.height)).save(frame.image)
    with pytest.raises(InputError, match=rf'^{frame.image}: image: expected the size of'):
        list(propagate(InferenceCore(small_network, size=32), DatasetSource(video)))


@pytest.mark.skipif(not Path('/work/shared/cases').is_dir(), reason='needs /work/shared')
@pytest.mark.parametrize('name', ['html', 'lfs', 'pickled'])
def test_reported_checkpoints_in_shared(name):
    with pytest.raises(CheckpointError, match=rf'{name}\.pth: expected a checkpoint, found'):
        load_model(f'/work/shared/cases/html-checkpoint/{name}.pth', device='cpu')
