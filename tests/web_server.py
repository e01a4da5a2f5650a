"""A running web page, for the tests of it."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import pytest

from dataset.io import list_frames, read_image
from model import Network
from scripts.web_tabs import Adaptation
from tests.conftest import REPOSITORY
from training.adapt import Adapting

SWAN = REPOSITORY / 'examples' / 'blackswan'

PATIENCE = 300  # seconds; for machines that do other things as well


needs_gradio = pytest.mark.skipif(importlib.util.find_spec('gradio') is None, reason='gradio is not installed')


class Server:
    """A running ``scripts/web.py``, its temporary files below a folder of ours."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder = folder
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}/'
        # The page has to ignore these settings, which would open it to other computers.
        opening = {'GRADIO_SHARE': 'True', 'GRADIO_SERVER_NAME': '0.0.0.0', 'GRADIO_ALLOWED_PATHS': '/'}
        command = [sys.executable, 'scripts/web.py', '--port', str(self.port), '--num_threads', '1', *arguments]
        self.log = folder / 'log'
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env={**os.environ, **opening, 'TMPDIR': str(folder)},
                # Tests that were started with nohup ignore the signal, and so would the server.
                preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
            )
        try:
            until(lambda: self.url in self.log.read_text() or self.process.poll() is not None)
            assert self.process.poll() is None, self.log.read_text()
        except AssertionError:
            self.process.kill()
            raise

    def clips(self) -> list[Path]:
        """The folders of the sessions that are open."""
        return list(self.folder.glob('stcn_web_*/clips/*'))

    def status(self, path: str, **headers: str) -> int:
        try:
            return urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)).status
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


def adaptation(network: Network) -> Adaptation:
    """That of a page with this network, for six seconds."""
    return Adaptation(partial(Adapting, network), lambda network: network, 6)


def until(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE, 'waited too long'
        time.sleep(0.1)


def zip_of_frames(path: Path, number: int, size: tuple[int, int], detail: tuple[int, int] | None = None) -> Path:
    """Write the first eight frames of the swan, again and again; with ``detail``, as so few blocks, in small files."""
    frames = [
        cv2.resize(
            cv2.resize(read_image(frame), detail or size, interpolation=cv2.INTER_AREA),
            size,
            interpolation=cv2.INTER_NEAREST,
        )
        for frame in list_frames(SWAN / 'JPEGImages')[: min(number, 8)]
    ]
    coded = [cv2.imencode('.png', frame[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 6))[1] for frame in frames]
    with zipfile.ZipFile(path, 'w') as archive:
        for index in range(number):
            archive.writestr(f'swan/{index:05d}.png', coded[index % len(coded)].tobytes())
    return path
