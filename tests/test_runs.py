"""The same masks whatever happens to a run: again, on two processes, killed halfway. For every evaluation script."""
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY, tree


@pytest.fixture(params=['youtube', 'testdev', 'folder'])
def script(request, small_checkpoint):
    """A script with the flags of its miniature dataset."""
    if request.param == 'youtube':
        words = ['eval_youtube.py', '--yv_path', request.getfixturevalue('youtube_root')]
    elif request.param == 'testdev':
        root = request.getfixturevalue('davis_root')
        shutil.move(root / 'trainval', root / 'test-dev')
        image_sets = root / 'test-dev/ImageSets/2017'
        shutil.move(image_sets / 'val.txt', image_sets / 'test-dev.txt')
        for path in (root / 'test-dev/Annotations').rglob('*.png'):
            if path.stem != '00000':
                path.unlink()
        words = ['eval_davis.py', '--split', 'testdev', '--davis_path', root]
    else:
        words = ['scripts/eval_folder.py', '--root', request.getfixturevalue('folder_root')]
    return [*words, '--model', small_checkpoint, '--device', 'cpu', '--size', '96', '--zip']


def start(script, output, *launcher):
    return subprocess.Popen([sys.executable, *launcher, *script, '--output', output], cwd=REPOSITORY,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def test_same_masks(script, tmp_path):
    finish(start(script, tmp_path / 'out'))
    expected, archive = tree(tmp_path / 'out'), (tmp_path / 'out.zip').read_bytes()
    assert '0 segmented, 2 finished before, 0 failed' in finish(start(script, tmp_path / 'out'))
    assert tree(tmp_path / 'out') == expected

    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    assert finish(start(script, tmp_path / 'two', *launcher)).count('2 segmented, 0 finished before, 0 failed') == 1
    assert tree(tmp_path / 'two') == expected
    assert (tmp_path / 'two.zip').read_bytes() == archive

    process = start(script, tmp_path / 'killed')
    while not list((tmp_path / 'killed').rglob('*.png')):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / 'killed.zip').exists()
    finish(start(script, tmp_path / 'killed'))
    assert tree(tmp_path / 'killed') == expected
    assert (tmp_path / 'killed.zip').read_bytes() == archive
