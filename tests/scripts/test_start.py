"""The start of a script: ``--help`` does not wait for heavy packages, and no import needs the network."""

import ast
import importlib
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ('', 'scripts', 'scripts/benchmarks')
    for path in (REPOSITORY / folder).glob('*.py')
    if "__name__ == '__main__'" in path.read_text()
)
MODULES = sorted(
    path.relative_to(REPOSITORY).with_suffix('').as_posix().replace('/', '.')
    for folder in ('', 'dataset', 'inference', 'model', 'scripts', 'scripts/benchmarks', 'training', 'util')
    for path in (REPOSITORY / folder).glob('*.py')
    if path.stem != '__init__'
)
# Seconds each on a cold disk; cv2 also fails on a machine without libGL, which --help should survive.
HEAVY = {'torch', 'torchvision', 'cv2', 'gradio', 'av', 'matplotlib', 'tensorboard', 'progressbar', 'onnx'}


def test_all_scripts_are_known():
    assert {'train.py', 'eval_davis.py', 'eval_youtube.py', 'scripts/web.py', 'scripts/download.py'} <= set(SCRIPTS)
    assert len(SCRIPTS) >= 15


FOLDERS = {
    'util': (),
    'model': ('util',),
    'dataset': ('util', 'model.image'),
    'inference': ('util', 'model', 'dataset'),
    'training': ('util', 'model', 'dataset', 'inference'),
}
"""Folder -> our other packages and modules that its modules may import."""


@pytest.mark.parametrize('folder', FOLDERS)
def test_imports_point_one_way(folder):
    allowed = (folder, *FOLDERS[folder])
    for path in (REPOSITORY / folder).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f'{path}: names its folder in its imports'
                # A name may be a module itself: from model import memory.
                names = [f'{node.module}.{alias.name}' for alias in node.names]
            else:
                continue
            for name in names:
                if name.split('.')[0] in {*FOLDERS, 'scripts', 'tests', 'train', 'hubconf'}:
                    assert any(f'{name}.'.startswith(f'{each}.') for each in allowed), f'{path} imports {name}'


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_waits_for_nothing_heavy(script):
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', script, '--help'],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.startswith('usage: ')
    imported = set(re.findall(r'\| +(\w+)$', result.stderr, re.MULTILINE))
    assert 'argparse' in imported
    assert not HEAVY & imported


def test_imports_need_no_network():
    """If a module connected to another machine when it is imported, the guard of this process would refuse it."""
    for module in MODULES:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != 'gradio':  # the one optional package that some modules import at their top
                raise


REACH = """
import socket
for reach in (lambda: socket.create_connection(('192.0.2.1', 80), timeout=1),
              lambda: socket.getaddrinfo('test.invalid', 80),
              lambda: socket.gethostbyname('test.invalid'),
              lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))):
    try:
        reach()
    except AssertionError as error:
        assert 'the tests need no network' in str(error)
    else:
        raise SystemExit('reached')
"""


def test_the_suite_reaches_this_machine_only(tmp_path):
    exec(REACH)
    subprocess.run([sys.executable, '-c', REACH], check=True, timeout=60)
    for family, address in ((socket.AF_INET, ('127.0.0.1', 0)), (socket.AF_UNIX, str(tmp_path / 'socket'))):
        with socket.socket(family) as server, socket.socket(family) as client:
            server.bind(address)
            server.listen()
            accepting = threading.Thread(target=lambda server=server: server.accept()[0].close())
            accepting.start()
            client.connect(server.getsockname())
            accepting.join(60)
    assert not {'http_proxy', 'https_proxy', 'all_proxy'} & {name.lower() for name in os.environ}
