"""Downloading, unpacking, converting and checking data sets, against a server on the loopback interface."""

import gzip
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.io import PALETTE, DataError, read_image, read_mask
from dataset.static import find_pairs
from dataset.video import find_videos
from scripts import check_data, convert, download
from scripts.fetch import ATTEMPTS
from scripts.sources import file_size, read_sources
from scripts.unpack import ArchiveError, install
from tests.conftest import REPOSITORY, tree
from tests.helpers import everything, hostile_source, make_zip, tar_with, zip_with
from tests.trees import write_video

TIMEOUT = 60  # seconds, for anything that should take about one second


# A server


class Site:
    """What the server answers, by path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}  # Content-Type
        self.cut: dict[str, int] = {}  # bytes after which a connection is cut
        self.errors: dict[str, list[int]] = {}  # status codes of the next answers
        self.without_range: set[str] = set()
        self.slow: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.url = ''


class Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT

    def do_GET(self) -> None:
        site: Site = self.server.site
        ranged = self.headers.get('Range')
        site.requests.append((self.path, ranged))
        body = site.files.get(self.path)
        if body is None or site.errors.get(self.path):
            self.send_error(404 if body is None else site.errors[self.path].pop(0))
            return
        start = int(ranged.removeprefix('bytes=').removesuffix('-')) if ranged else 0
        if self.path in site.without_range:
            start, ranged = 0, None
        if ranged and start >= len(body):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(body)}')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.send_header('Content-Length', str(len(body) - start))
        self.send_header('Content-Type', site.types.get(self.path, 'application/octet-stream'))
        self.end_headers()
        content = body[start:][: site.cut.get(self.path)]
        try:
            for i in range(0, len(content), 5000):
                self.wfile.write(content[i : i + 5000])
                if self.path in site.slow:
                    time.sleep(0.05)
        except ConnectionError:
            pass  # the client was killed

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.site = Site()
    server.site.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join(TIMEOUT)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr('scripts.fetch.PAUSE', 0.01)
    monkeypatch.setattr('scripts.fetch.TIMEOUT', 20)
    monkeypatch.delenv('http_proxy', raising=False)
    monkeypatch.setenv('no_proxy', '127.0.0.1')


def run(script, *arguments) -> int:
    return script.main(list(map(str, arguments)))


# Archives


VIDEOS = {
    'JPEGImages/480p/bear/00000.jpg': os.urandom(30_000),
    'JPEGImages/480p/bear/00001.jpg': os.urandom(30_000),
    'Annotations/480p/bear/00000.png': os.urandom(9_000),
    'ImageSets/2017/train.txt': b'bear\n',
}


def make_tar(files: dict[str, bytes], *, inside: str = '') -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(inside + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def visible(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without those that the script made for itself."""
    return {name: content for name, content in tree(folder).items() if not Path(name).name.startswith('.')}


@pytest.fixture
def sources(tmp_path, site):
    """A list with a weight file, a zip and two tars that share their target; ``sources()`` gives its flags."""
    holds = ['JPEGImages', 'Annotations']
    parts = [{name.replace('bear', video): content for name, content in VIDEOS.items()} for video in ('bear', 'boat')]
    site.files |= {
        '/stcn.pth': os.urandom(50_000),
        '/davis.zip': make_zip(VIDEOS, inside='some/DAVIS/'),
        '/a.tar': make_tar(parts[0], inside='./'),
        '/b.tar': make_tar(parts[1], inside='BL30K/'),
    }
    listed = {
        'note': 'a note',
        'weights': [{'name': 'the network', 'url': f'{site.url}/stcn.pth', 'to': 'stcn.pth'}],
        'davis': [
            {
                'name': 'the videos',
                'url': f'{site.url}/davis.zip',
                'page': 'https://a.page/davis',
                'archive': 'DAVIS-data.zip',
                'holds': holds,
                'to': 'DAVIS/2016',
            }
        ],
        'bl30k': [
            {
                'name': f'part {x}',
                'url': f'{site.url}/{x}.tar',
                'archive': f'{x}.tar',
                'holds': holds,
                'to': 'BL30K',
                'gigabytes': 0.001,
            }
            for x in 'ab'
        ],
    }
    path = tmp_path / 'sources.json'
    path.write_text(json.dumps(listed))
    return ['--sources', path, '--root', tmp_path / 'data', '--saves', tmp_path / 'saves']


def test_downloads_into_the_layout_and_once(tmp_path, site, sources):
    assert run(download, 'all', *sources) == 0
    assert tree(tmp_path / 'saves') == {'stcn.pth': site.files['/stcn.pth']}
    assert visible(tmp_path / 'data' / 'DAVIS' / '2016') == VIDEOS
    both = {name.replace('bear', video) for name in VIDEOS for video in ('bear', 'boat')}
    assert visible(tmp_path / 'data' / 'BL30K').keys() == both
    left = [path for path in (tmp_path / 'data').rglob('*') if path.suffix in ('.zip', '.tar', '.part', '.unpacking')]
    assert not left
    assert len(site.requests) == 4

    before = tree(tmp_path)
    assert run(download, 'all', *sources) == 0
    assert len(site.requests) == 4
    assert tree(tmp_path) == before


def test_list_and_keep(tmp_path, site, sources, capsys):
    assert run(download, 'davis', *sources, '--keep') == 0
    assert (tmp_path / 'data/DAVIS/2016/DAVIS-data.zip').is_file()
    (tmp_path / 'data/BL30K').mkdir()
    (tmp_path / 'data/BL30K/a.tar.part').write_bytes(bytes(200_000))
    (tmp_path / 'data/BL30K/b.tar').write_bytes(site.files['/b.tar'])
    before, asked = tree(tmp_path), len(site.requests)
    assert run(download, 'all', *sources, '--list') == 0
    text = capsys.readouterr().out
    for line in (
        'the network: to be downloaded',
        'the videos: complete',
        'part a: to be continued at 0.2 MB',
        'part b: to be unpacked',
        f'as   {tmp_path / "data/BL30K/a.tar"}',
        'from https://a.page/davis',
    ):
        assert line in text
    assert (tree(tmp_path), len(site.requests)) == (before, asked)


def test_a_folder_made_by_hand_is_complete_unless_archives_share_it(tmp_path, site, sources):
    for name in ('DAVIS/2016', 'BL30K'):
        for folder in ('JPEGImages', 'Annotations'):
            (tmp_path / 'data' / name / folder).mkdir(parents=True)
    assert run(download, 'davis', 'bl30k', *sources) == 0
    assert [path for path, _ in site.requests] == ['/a.tar', '/b.tar']


def test_an_archive_fetched_by_hand_is_unpacked(tmp_path, site, sources):
    archive = tmp_path / 'data/DAVIS/2016/DAVIS-data.zip'
    archive.parent.mkdir(parents=True)
    archive.write_bytes(make_zip(VIDEOS))  # without a folder around it
    assert run(download, 'davis', *sources) == 0
    assert visible(archive.parent) == VIDEOS
    assert not site.requests


def test_cut_connections_are_continued(tmp_path, site, sources):
    site.cut['/stcn.pth'] = 12_000
    assert run(download, 'weights', *sources) == 0
    assert (tmp_path / 'saves/stcn.pth').read_bytes() == site.files['/stcn.pth']
    starts = [None, 'bytes=12000-', 'bytes=24000-', 'bytes=36000-', 'bytes=48000-']
    assert [ranged for _, ranged in site.requests] == starts


def test_a_server_without_range_sends_it_anew(tmp_path, site, sources):
    site.without_range.add('/stcn.pth')
    (tmp_path / 'saves').mkdir()
    (tmp_path / 'saves/stcn.pth.part').write_bytes(b'of another time')
    assert run(download, 'weights', *sources) == 0
    assert (tmp_path / 'saves/stcn.pth').read_bytes() == site.files['/stcn.pth']


@pytest.mark.parametrize('extra', [0, 100])
def test_a_part_that_has_all_bytes_or_more(tmp_path, site, sources, extra):
    (tmp_path / 'saves').mkdir()
    (tmp_path / 'saves/stcn.pth.part').write_bytes(site.files['/stcn.pth'] + bytes(extra))
    assert run(download, 'weights', *sources) == 0
    assert (tmp_path / 'saves/stcn.pth').read_bytes() == site.files['/stcn.pth']
    assert len(site.requests) == (2 if extra else 1)


def test_overloaded_server_is_asked_again(tmp_path, site, sources):
    site.errors['/stcn.pth'] = [503, 429]
    assert run(download, 'weights', *sources) == 0
    assert len(site.requests) == 3


def test_what_fails_is_named_and_others_go_on(tmp_path, site, sources, caplog):
    del site.files['/davis.zip']
    site.errors['/a.tar'] = [503] * 10
    assert run(download, 'all', *sources) == 1
    for words in (
        'FAILED the videos: the server answered 404',
        'open https://a.page/davis',
        str(tmp_path / 'data/DAVIS/2016/DAVIS-data.zip'),
        'FAILED part a: the server answered 503',
        'failed: the videos; part a',
    ):
        assert words in caplog.text
    assert (tmp_path / 'saves/stcn.pth').is_file()
    assert (tmp_path / 'data/BL30K/JPEGImages/480p/boat').is_dir()
    assert [path for path, _ in site.requests].count('/davis.zip') == 1
    assert [path for path, _ in site.requests].count('/a.tar') == ATTEMPTS

    site.errors.clear()
    assert run(download, 'bl30k', *sources) == 0
    assert (tmp_path / 'data/BL30K/JPEGImages/480p/bear').is_dir()


def test_nobody_answers(tmp_path, sources, caplog):
    path = sources[1]
    path.write_text(path.read_text().replace('http://127.0.0.1:', 'http://127.0.0.1:1/'))
    assert run(download, 'weights', *sources) == 1
    assert 'FAILED the network: the connection failed' in caplog.text
    assert 'refused' in caplog.text


@pytest.mark.parametrize('content_type', ['text/html; charset=utf-8', 'application/octet-stream'])
def test_a_web_page_is_not_taken_for_the_file(tmp_path, site, sources, caplog, content_type):
    site.files['/davis.zip'] = b'\n<!DOCTYPE html><html><title>Quota exceeded</title><p>Too many users</p></html>'
    site.types['/davis.zip'] = content_type
    assert run(download, 'davis', *sources) == 1
    assert 'web page' in caplog.text
    assert 'https://a.page/davis' in caplog.text
    assert ('Quota exceeded' in caplog.text) == content_type.startswith('text/html')
    assert not tree(tmp_path / 'data')


def test_drive_asks_before_large_files(tmp_path, site, sources, monkeypatch):
    site.files['/ask?id=abc'] = f"""<html><head><title>Virus scan warning</title></head><body>
        <form id="download-form" action="{site.url}/download" method="get">
        <input type="submit" value="Download anyway"><input type="hidden" name="id" value="abc">
        <input type="hidden" name="uuid" value="1&amp;2"></form></body></html>""".encode()
    site.types['/ask?id=abc'] = 'text/html'
    site.files['/download?id=abc&uuid=1%262'] = site.files['/davis.zip']
    monkeypatch.setattr('scripts.sources.DRIVE', site.url + '/ask?id={}')
    listed = json.loads(sources[1].read_text())
    listed['davis'][0]['drive'] = 'abc'
    sources[1].write_text(json.dumps(listed))
    assert run(download, 'davis', *sources) == 0
    assert visible(tmp_path / 'data/DAVIS/2016') == VIDEOS


def test_disk_space(tmp_path, site, sources, monkeypatch, caplog):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(1_500_000))
    with pytest.raises(OSError, match=r'needs 2\.0 MB of free disk, found 1\.5 MB'):  # the two tars' sizes in the list
        run(download, 'all', *sources)
    assert not site.requests

    size = len(site.files['/davis.zip'])
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(2 * size - 1))  # download, then unpack
    assert run(download, 'davis', 'weights', *sources) == 1
    assert 'FAILED the videos: the videos needs 0.1 MB of free disk' in caplog.text
    assert (tmp_path / 'saves/stcn.pth').is_file()
    assert not tree(tmp_path / 'data')


def test_killed_while_downloading(tmp_path, site, sources):
    site.slow.add('/davis.zip')
    command = [sys.executable, 'scripts/download.py', 'davis', *map(str, sources)]
    environment = os.environ | {'no_proxy': '127.0.0.1'}
    part = tmp_path / 'data/DAVIS/2016/DAVIS-data.zip.part'
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: file_size(part) > 0 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait(TIMEOUT)
    received = part.stat().st_size
    assert 0 < received < len(site.files['/davis.zip'])

    site.slow.clear()
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=TIMEOUT, capture_output=True)
    assert site.requests[-1] == ('/davis.zip', f'bytes={received}-')
    assert visible(tmp_path / 'data/DAVIS/2016') == VIDEOS


def wait_for(condition) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, 'timed out'
        time.sleep(0.005)


class Killed(BaseException):
    """Stands in for SIGKILL: no code catches it."""


@pytest.mark.parametrize('victim', ['write_member', 'move', 'shutil.rmtree'])
def test_killed_at_any_point_of_unpacking(tmp_path, site, sources, monkeypatch, victim):
    """A run is interrupted before its n-th step, for every n; the next run gives the same tree."""
    owner, name = (shutil, 'rmtree') if victim == 'shutil.rmtree' else (sys.modules['scripts.unpack'], victim)
    original = getattr(owner, name)
    interrupted = 0
    for step in range(50):
        shutil.rmtree(tmp_path / 'data', ignore_errors=True)
        shutil.copytree(REPOSITORY / 'tests/golden/appearing', tmp_path / 'data/DAVIS/2016/JPEGImages/mine')
        calls = iter(range(step))

        def act(*arguments, calls=calls, **options):
            if next(calls, None) is None:
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, act)
        try:
            run(download, 'davis', *sources)
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(owner, name, original)
        assert run(download, 'davis', *sources) == 0
        found = visible(tmp_path / 'data/DAVIS/2016')
        assert {name: found.get(name) for name in VIDEOS} == VIDEOS
        assert len(found) == len(VIDEOS) + 3  # and the user's own files
        if finished:
            break
        interrupted += 1
    assert interrupted >= 2


def test_the_wrong_archive(tmp_path, site, sources, caplog):
    site.files['/davis.zip'] = make_zip({'thesis/a.txt': b'a', 'thesis/b.txt': b'b'})
    assert run(download, 'davis', *sources) == 1
    assert 'expected JPEGImages and Annotations in it, found a.txt, b.txt' in caplog.text
    assert tree(tmp_path / 'data/DAVIS/2016').keys() == {'DAVIS-data.zip'}


def test_shipped_sources():
    layout = {
        'static',
        'BL30K',
        'DAVIS/2016',
        'DAVIS/2017/trainval',
        'DAVIS/2017/test-dev',
        'YouTube/train',
        'YouTube/valid',
        'YouTube/all_frames/valid_all_frames',
        'YouTube2018/valid',
        'YouTube2018/all_frames/valid_all_frames',
    }
    groups = read_sources(REPOSITORY / 'scripts/sources.json', root=Path('root'), saves=Path('saves'))
    assert list(groups) == ['weights', 'static', 'davis', 'youtube', 'bl30k']
    sources = [source for group in groups.values() for source in group]
    assert {str(source.target.relative_to('root')) for source in sources if source.archive} == layout
    assert all(source.url.startswith('https://') and source.page.startswith('https://') for source in sources)
    for distinct in ([source.file for source in sources], [source.url for source in sources]):
        assert len(set(distinct)) == len(sources)


# Hostile archives


def encrypted(data: bytes) -> bytes:
    """Set the flag of encryption in both headers of a zip with one member."""
    data = bytearray(data)
    data[6] |= 1
    data[data.index(b'PK\x01\x02') + 8] |= 1
    return bytes(data)


def understated(data: bytes) -> bytes:
    """Make the central directory declare 1 byte for a member that inflates to more."""
    data = bytearray(data)
    place = data.index(b'PK\x01\x02') + 24
    data[place : place + 4] = (1).to_bytes(4, 'little')
    return bytes(data)


OUT = '../../../outside/evil'
ABSOLUTE = Path(tempfile.gettempdir(), f'evil-{os.getpid()}')
ZIPS = {
    'absolute': zip_with((str(ABSOLUTE), b'x')),
    'parent': zip_with((OUT, b'x')),
    'parent within': zip_with(('a/../../../../outside/evil', b'x')),
    'parent folder': zip_with(('../../../outside/evil/', b'')),
    'backslashes': zip_with(('..\\..\\..\\outside\\evil', b'x')),
    'drive letter': zip_with(('C:/evil', b'x')),
    'link': zip_with(('link', b'../../../outside'), mode=stat.S_IFLNK | 0o777),
    'link, then through it': zip_with(('link', b'../../../outside'), ('link/evil', b'x'), mode=stat.S_IFLNK | 0o777),
    'device': zip_with(('device', b''), mode=stat.S_IFCHR | 0o666),
    'pipe': zip_with(('pipe', b''), mode=stat.S_IFIFO | 0o666),
    'bomb': zip_with(('zeros', bytes(10_000_000))),
    'bomb of many': zip_with(*((f'zeros{i}', bytes(100_000)) for i in range(50))),
    'understated': understated(zip_with(('zeros', bytes(100_000)))),
    'encrypted': encrypted(zip_with(('secret', b'x'))),
    'file as folder': zip_with(('a', b'x'), ('a/b', b'x')),
    'truncated': make_zip(VIDEOS)[:-2000],
    'damaged': make_zip(VIDEOS)[:1000] + b'evil' + make_zip(VIDEOS)[1004:],
    'a tar': make_tar(VIDEOS),
    'text': b'nothing',
    'empty': b'',
}
TARS = {
    'absolute': tar_with({'name': str(ABSOLUTE), 'content': b'x'}),
    'parent': tar_with({'name': OUT, 'content': b'x'}),
    'parent within': tar_with({'name': 'a/../../../../outside/evil', 'content': b'x'}),
    'parent folder': tar_with({'name': '../../../outside/evil', 'type': tarfile.DIRTYPE}),
    'link': tar_with({'name': 'link', 'type': tarfile.SYMTYPE, 'linkname': '../../../outside/precious'}),
    'link, then through it': tar_with(
        {'name': 'link', 'type': tarfile.SYMTYPE, 'linkname': '../../../outside'},
        {'name': 'link/evil', 'content': b'x'},
    ),
    'link, then onto it': tar_with(
        {'name': 'link', 'type': tarfile.SYMTYPE, 'linkname': '../../../outside/precious'},
        {'name': 'link', 'content': b'x'},
    ),
    'hard link': tar_with(
        {'name': 'link', 'type': tarfile.LNKTYPE, 'linkname': '../../../outside/precious'},
        {'name': 'link', 'content': b'x'},
    ),
    'device': tar_with({'name': 'device', 'type': tarfile.CHRTYPE, 'devmajor': 1, 'devminor': 3}),
    'block device': tar_with({'name': 'device', 'type': tarfile.BLKTYPE}),
    'pipe': tar_with({'name': 'pipe', 'type': tarfile.FIFOTYPE}),
    'holes': tar_with(
        {
            'name': 'sparse',
            'pax_headers': {
                'GNU.sparse.major': '0',
                'GNU.sparse.minor': '1',
                'GNU.sparse.size': '900000000000',
                'GNU.sparse.map': '0,0,900000000000,0',
            },
        }
    ),
    'larger than the archive': tar_with({'name': 'a', 'content': b'x', 'size': 10**12}),
    'less than nothing': tar_with({'name': 'a'}, {'name': 'b', 'size': -1536}),  # its end is before its start
    'in the middle': tar_with(
        {'name': 'JPEGImages/a', 'content': b'x'},
        {'name': 'Annotations/a', 'content': b'x'},
        {'name': OUT, 'content': b'x'},
    ),
    'truncated': make_tar(VIDEOS)[:-12_000],
    'cut between members': make_tar(VIDEOS)[: 512 + 30_208],
    'compressed': gzip.compress(make_tar(VIDEOS)),
    'text': b'nothing',
    'empty': b'',
}


REASONS = {
    'could lead out of the folder': ('absolute', 'parent', 'backslashes', 'drive letter', 'in the middle'),
    'is a link': ('link', 'hard link'),
    'is a special file': ('device', 'block device', 'pipe', 'holes'),
    'that unpack to': ('bomb',),
    'is both a file and a folder': ('file as folder',),
    'Delete it': (
        'understated',
        'encrypted',
        'truncated',
        'damaged',
        'a tar',
        'text',
        'empty',
        'cut',
        'compressed',
        'larger than the archive',
        'less than nothing',
    ),
}


@pytest.mark.parametrize(('suffix', 'name'), [*(('.zip', name) for name in ZIPS), *(('.tar', name) for name in TARS)])
def test_hostile_archive(tmp_path, suffix, name):
    """The error says what is wrong with the archive, and nothing is written anywhere."""
    ABSOLUTE.unlink(missing_ok=True)
    source = hostile_source(tmp_path, (ZIPS if suffix == '.zip' else TARS)[name], suffix)
    before = everything(tmp_path)
    reason = next(reason for reason, names in REASONS.items() if name.startswith(names))
    with pytest.raises(ArchiveError, match=f'^{source.archive}: .*{reason}'):
        install(source)
    assert everything(tmp_path) == before
    assert not ABSOLUTE.exists()


def test_mutated_archives_do_nothing_outside(tmp_path):
    """An archive with random bytes changed is unpacked, or refused with one of the documented exceptions."""
    rng = random.Random(0)
    files = {'JPEGImages/a.jpg': b'abc' * 50, 'Annotations/a.png': b'x', 'meta.json': b'{}'}
    outcomes = {True: 0, False: 0}
    for number in range(150):
        suffix = '.zip' if number % 2 else '.tar'
        data = bytearray(make_zip(files) if number % 2 else make_tar(files))
        used = len(data) if number % 2 else 3 * 1024
        for _ in range(rng.choice((1, 1, 3, 10))):
            data[rng.randrange(used)] = rng.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        source = hostile_source(folder, bytes(data), suffix)
        try:
            install(source)
            outcomes[True] += 1
        except (ArchiveError, OSError):
            outcomes[False] += 1
        outside = [path for path in everything(folder) if not path.startswith(str(folder / 'inside'))]
        assert sorted(outside) == [str(folder / 'outside'), str(folder / 'outside/precious')]
        assert (folder / 'outside/precious').read_bytes() == b'precious'
        assert not any(path.is_symlink() for path in folder.rglob('*'))
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 20


def test_unpacking_needs_room(tmp_path, monkeypatch):
    source = hostile_source(tmp_path, make_zip(VIDEOS), '.zip')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: namedtuple('usage', 'free')(10_000))
    with pytest.raises(OSError, match=r'evil\.zip needs .* of free disk'):
        install(source)
    assert tree(tmp_path / 'inside').keys() == {'evil.zip'}


# Conversion


def picture(size: tuple[int, int], *, seed: int = 0) -> Image.Image:
    """A real frame, resized; ``size`` is (width, height)."""
    frames = sorted((REPOSITORY / 'tests/golden/clip').iterdir())
    return Image.fromarray(read_image(frames[seed % len(frames)])).resize(size)


def labels(size: tuple[int, int]) -> np.ndarray:
    """Two discs labelled 3 and 7."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for label, centre in ((3, 0.3), (7, 0.7)):
        mask[((y / height - 0.5) ** 2 + (x / width - centre) ** 2) < 0.02] = label
    return mask


def save_labels(path: Path, mask: np.ndarray, *, palette: np.ndarray = PALETTE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(palette.tobytes())
    image.save(path)


def save_video(images: Path, masks: Path, name: str, *, frames: int = 3, size=(128, 96), palette=PALETTE) -> None:
    (images / name).mkdir(parents=True)
    for t in range(frames):
        picture(size, seed=t).save(images / name / f'{5 * t:05d}.jpg', quality=95)
        save_labels(masks / name / f'{5 * t:05d}.png', labels(size), palette=palette)


@pytest.fixture
def youtube_root(tmp_path):
    """A landscape, a portrait and a small video, whose masks have another palette than ours."""
    root = tmp_path / 'YouTube'
    for name, size in (('wide', (1280, 720)), ('tall', (540, 961)), ('small', (400, 300))):
        save_video(root / 'train/JPEGImages', root / 'train/Annotations', name, size=size, palette=PALETTE[::-1])
    (root / 'train/meta.json').write_text('{"videos": {}}')
    return root


def palette_of(path: Path) -> list[int]:
    with Image.open(path) as image:
        assert image.mode == 'P'
        return image.getpalette()[: 3 * 8]


def test_convert_youtube(youtube_root, capsys):
    assert run(convert, 'youtube', '--root', youtube_root, '--num_workers', 2) == 0
    assert '9 images converted, 0 existed already, 0 problems' in capsys.readouterr().out
    source, small = youtube_root / 'train', youtube_root / 'train_480p'
    assert tree(small).keys() == tree(source).keys()
    for name, size in (('wide', (853, 480)), ('tall', (480, 854)), ('small', (400, 300))):
        image = read_image(small / 'JPEGImages' / name / '00005.jpg')
        mask = read_mask(small / 'Annotations' / name / '00005.png')
        assert image.shape[1::-1] == mask.shape[::-1] == size
        assert set(np.unique(mask)) == {0, 3, 7}
        assert palette_of(small / 'Annotations' / name / '00005.png') == PALETTE[::-1].ravel().tolist()[: 3 * 8]
        # Centres are those of the original within 0.1% of the image, areas within 1%: nothing is shifted or lost.
        original = read_mask(source / 'Annotations' / name / '00005.png')
        for label in (3, 7):
            places = [np.argwhere(m == label).mean(axis=0) / m.shape for m in (original, mask)]
            np.testing.assert_allclose(*places, atol=1e-3)
            np.testing.assert_allclose(*((m == label).mean() for m in (original, mask)), rtol=0.01)
    assert {name: content for name, content in tree(small).items() if 'small' in name} == {
        name: content for name, content in tree(source).items() if 'small' in name
    }
    reference = picture((1280, 720), seed=1).resize((853, 480), Image.Resampling.BOX)
    difference = read_image(small / 'JPEGImages/wide/00005.jpg').astype(float) - np.array(reference)
    assert np.abs(difference).mean() < 2
    assert len(find_videos(small / 'JPEGImages', small / 'Annotations')) == 3


def test_convert_reports_and_goes_on(youtube_root, capsys, caplog):
    train = youtube_root / 'train'
    data = (train / 'JPEGImages/wide/00000.jpg').read_bytes()
    (train / 'JPEGImages/wide/00000.jpg').write_bytes(data[: len(data) // 2])
    Image.fromarray(labels((1280, 720)) * 30).resize((1280, 720)).convert('RGB').save(
        train / 'Annotations/wide/00005.png'
    )
    shutil.rmtree(train / 'Annotations/tall')
    (train / 'JPEGImages/small/00010.jpg').unlink()
    assert run(convert, 'youtube', '--root', youtube_root, '--num_workers', 1) == 1
    assert '1 images converted, 0 existed already, 4 problems' in capsys.readouterr().out
    for words in (
        'wide/00000.jpg: expected an image',
        'wide/00005.png: expected a mask',
        'Annotations/tall: expected',
        'Annotations/small: 1 mask(s) without an image: 00010',
    ):
        assert words in caplog.text
    assert sorted(tree(youtube_root / 'train_480p')) == [
        'Annotations/wide/00010.png',
        'JPEGImages/wide/00010.jpg',
        'meta.json',
    ]


def test_convert_continues(youtube_root, capsys):
    """Copies that were made before a SIGKILL are whole. The next run keeps them and makes exactly the others."""
    command = [sys.executable, 'scripts/convert.py', 'youtube', '--root', str(youtube_root), '--num_workers', '1']
    small = youtube_root / 'train_480p'
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len([*small.rglob('*.jpg')]) > 1 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait(TIMEOUT)
    there = {path: path.stat().st_mtime_ns for path in small.rglob('[!.]*.jpg')}
    assert 0 < len(there) < 9
    for path in there:
        read_image(path)
    assert run(convert, 'youtube', '--root', youtube_root, '--num_workers', 1) == 0
    interrupted = tree(small)
    assert f'{9 - len(there)} images converted, {len(there)} existed already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in there} == there

    shutil.rmtree(small)
    assert run(convert, 'youtube', '--root', youtube_root, '--num_workers', 1) == 0
    assert tree(small) == interrupted


def test_convert_a_mask_that_is_a_pixel_narrower(tmp_path):
    save_video(tmp_path / 'train/JPEGImages', tmp_path / 'train/Annotations', 'odd', frames=1, size=(1280, 720))
    save_labels(tmp_path / 'train/Annotations/odd/00000.png', labels((1279, 720)))
    assert run(convert, 'youtube', '--root', tmp_path, '--num_workers', 1) == 0
    assert read_mask(tmp_path / 'train_480p/Annotations/odd/00000.png').shape == (480, 853)


def test_convert_static(tmp_path, capsys, caplog):
    def save_pair(image: str, mask: str, size: tuple[int, int], level: int = 255) -> None:
        for name in (image, mask):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(size).save(tmp_path / image, quality=95)
        Image.fromarray((labels(size) > 0).astype(np.uint8) * np.uint8(level)).save(tmp_path / mask)

    save_pair('BIG/test/1_im.jpg', 'BIG/test/1_gt.png', (1600, 1201))
    save_pair('BIG/val/2_im.jpg', 'BIG/val/2_gt.png', (300, 200))
    save_pair('HRSOD/images/3.jpeg', 'HRSOD/masks/3.png', (601, 900), level=1)
    assert run(convert, 'static', '--root', tmp_path, '--num_workers', 1) == 0
    assert '3 images converted' in capsys.readouterr().out
    for path, size in (('BIG_small/1', (512, 384)), ('BIG_small/2', (300, 200)), ('HRSOD_small/3', (342, 512))):
        with Image.open(tmp_path / f'{path}.jpg') as image, Image.open(tmp_path / f'{path}.png') as mask:
            assert image.size == mask.size == size
            coverage = np.array(mask)
            assert coverage.max() == 255
        assert (coverage > 127).mean() == pytest.approx((labels((900, 600)) > 0).mean(), rel=0.02)
    assert {Path(pair.image).stem for pair in find_pairs(tmp_path)} >= {'1', '2', '3'}

    picture((40, 30)).save(tmp_path / 'BIG/4_im.jpg')
    picture((40, 30)).save(tmp_path / 'BIG/val/1_im.jpg')
    assert run(convert, 'static', '--root', tmp_path, '--num_workers', 1) == 1
    assert '0 images converted, 3 existed already, 2 problems' in capsys.readouterr().out
    assert 'BIG/4_im.jpg: found no mask for it' in caplog.text
    assert 'BIG/val/1_im.jpg: left out, because' in caplog.text


def test_convert_stills(tmp_path, capsys):
    davis, output = tmp_path / 'DAVIS', tmp_path / 'stills'
    base = davis / '2017' / 'trainval'
    for name in ('bear', 'boat'):
        write_video(base / 'JPEGImages' / '480p', base / 'Annotations' / '480p', name, labels=(1, 4))
    flags = ('stills', '--root', davis, '--output', output, '--every', 4, '--num_workers', 1)
    assert run(convert, *flags, '--hold_aside', 'boat') == 0
    assert sorted(path.name for path in output.iterdir()) == [
        f'bear_0000{frame}_{label}.{suffix}' for frame in (0, 4) for label in (1, 4) for suffix in ('jpg', 'png')
    ]
    assert len(find_pairs(output)) == 4
    mask = read_mask(base / 'Annotations' / '480p' / 'bear' / '00004.png')
    assert np.array_equal(np.array(Image.open(output / 'bear_00004_4.png')), np.where(mask == 4, 255, 0))
    assert run(convert, *flags) == 0
    assert '4 images converted, 4 existed already, 0 problems' in capsys.readouterr().out
    with pytest.raises(DataError, match='none named cat'):
        run(convert, *flags, '--hold_aside', 'cat')


@pytest.mark.parametrize('dataset', ['youtube', 'static'])
def test_convert_nothing(tmp_path, dataset):
    with pytest.raises(DataError, match=f'^{tmp_path}.*Check --root'):
        run(convert, dataset, '--root', tmp_path)


# The checker


@pytest.fixture
def training_roots(tmp_path, monkeypatch):
    """Clean small trees of all four data sets and the flags that name them."""
    monkeypatch.setattr('dataset.video.read_split', lambda name: ['bear', 'boat'])
    static, bl, yv, davis = (tmp_path / name for name in ('static', 'BL30K', 'YouTube', 'DAVIS'))
    for folder in ('fss/cat', 'DUTS-TR', 'BIG_small'):
        (static / folder).mkdir(parents=True)
        for number in '12':
            picture((60, 40)).save(static / folder / f'{number}.jpg', quality=95)
            soft = Image.fromarray((labels((240, 160)) > 0).astype(np.uint8) * np.uint8(255)).resize((60, 40))
            soft.save(static / folder / f'{number}.png')
    trainval = davis / '2017/trainval'
    for images, masks in (
        (bl / 'JPEGImages', bl / 'Annotations'),
        (yv / 'train_480p/JPEGImages', yv / 'train_480p/Annotations'),
        (trainval / 'JPEGImages/480p', trainval / 'Annotations/480p'),
    ):
        for name in ('bear', 'boat'):
            save_video(images, masks, name, frames=4)
    return ['--static_root', static, '--bl_root', bl, '--yv_root', yv, '--davis_root', davis]


def findings(folder: Path, *flags) -> tuple[int, list[tuple]]:
    """Run the checker: its exit status, and the data set, kind, path below ``folder`` and names of each problem."""
    status = run(check_data, *flags, '--json', folder / 'report.json')
    report = json.loads((folder / 'report.json').read_text())
    return status, [
        (problem['dataset'], problem['kind'], str(Path(problem['path']).relative_to(folder)), problem['names'])
        for problem in report['problems']
    ]


@pytest.mark.parametrize('flags', [('--num_workers', 1), ('--num_workers', 2, '--quick')])
def test_check_finds_nothing_in_clean_trees(tmp_path, training_roots, capsys, flags):
    assert findings(tmp_path, *training_roots, *flags) == (0, [])
    _, *table, last = capsys.readouterr().out.splitlines()
    assert last == 'no problems found'
    assert [line.split()[:2] for line in table] == [
        ['static', '6'],
        ['BL30K', '8'],
        ['YouTubeVOS', '8'],
        ['DAVIS', '8'],
    ]
    assert all(set(line.split()[2:]) == {'0'} for line in table)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def blur(path: Path) -> None:
    Image.fromarray(labels((500, 400)) * 30).resize((128, 96), Image.Resampling.BICUBIC).save(path)


DAVIS, YV = 'DAVIS/2017/trainval', 'YouTube/train_480p'
DEFECTS = [
    ('static/fss/cat/1.jpg', cut, 'static', 'unreadable', None, []),
    ('static/fss/cat/1.png', cut, 'static', 'bad mask', None, []),
    ('static/BIG_small/1.png', lambda path: Image.new('L', (60, 40)).save(path), 'static', 'bad mask', None, []),
    ('static/BIG_small/1.png', lambda path: Image.new('L', (59, 40), 255).save(path), 'static', 'size', None, []),
    ('static/DUTS-TR/1.png', Path.unlink, 'static', 'no mask', 'static/DUTS-TR', ['1']),
    ('static/fss/cat/1.jpg', Path.unlink, 'static', 'no image', 'static/fss/cat', ['1']),
    ('BL30K/JPEGImages/bear/00005.jpg', cut, 'BL30K', 'unreadable', None, []),
    ('BL30K/JPEGImages/bear/00005.jpg', lambda path: path.write_text('text'), 'BL30K', 'unreadable', None, []),
    (
        'BL30K/Annotations/bear',
        shutil.rmtree,
        'BL30K',
        {'too short': [], 'no mask': ['00000', '00005', '00010', '00015']},
        'BL30K/JPEGImages/bear',
        None,
    ),
    (f'{YV}/Annotations/boat/00010.png', blur, 'YouTubeVOS', 'bad mask', None, []),
    (
        f'{YV}/Annotations/boat/00010.png',
        lambda path: save_labels(path, labels((127, 96))),
        'YouTubeVOS',
        'size',
        None,
        [],
    ),
    (f'{YV}/Annotations/boat/00010.png', Path.unlink, 'YouTubeVOS', 'no mask', f'{YV}/JPEGImages/boat', ['00010']),
    (f'{YV}/JPEGImages/boat/00010.jpg', Path.unlink, 'YouTubeVOS', 'no image', f'{YV}/Annotations/boat', ['00010']),
    (
        f'{YV}/boat',
        lambda path: [shutil.rmtree(path.parent / kind / 'boat') for kind in ('JPEGImages', 'Annotations')],
        'YouTubeVOS',
        'absent',
        f'{YV}/JPEGImages',
        ['boat'],
    ),
    (
        f'{DAVIS}/bear',
        lambda path: [
            (path.parent / kind / f'480p/bear/{frame}').unlink()
            for kind, frame in (
                ('JPEGImages', '00000.jpg'),
                ('JPEGImages', '00005.jpg'),
                ('Annotations', '00000.png'),
                ('Annotations', '00005.png'),
            )
        ],
        'DAVIS',
        'too short',
        f'{DAVIS}/JPEGImages/480p/bear',
        [],
    ),
    (DAVIS, shutil.rmtree, 'DAVIS', 'absent', f'{DAVIS}/JPEGImages/480p', ['bear', 'boat']),
    ('static', shutil.rmtree, 'static', 'absent', 'static', []),
    ('BL30K', shutil.rmtree, 'BL30K', 'absent', 'BL30K', []),
]


@pytest.mark.parametrize(('path', 'spoil', 'dataset', 'kind', 'where', 'names'), DEFECTS)
def test_check_finds_what_is_spoilt(tmp_path, training_roots, capsys, path, spoil, dataset, kind, where, names):
    spoil(tmp_path / path)
    status, found = findings(tmp_path, *training_roots, '--num_workers', 1)
    kinds = kind if isinstance(kind, dict) else {kind: names}
    assert (status, found) == (1, [(dataset, kind, where or path, names) for kind, names in kinds.items()])
    assert Path(path).parts[-1].split('.')[0] in capsys.readouterr().out


def test_check_of_videos_of_ones_own(tmp_path, capsys):
    """Not every frame needs a mask in them."""
    mine, other = tmp_path / 'mine', tmp_path / 'other'
    for root in (mine, other):
        save_video(root / 'JPEGImages', root / 'Annotations', 'my cat', frames=6)
    (mine / 'Annotations/my cat/00005.png').unlink()
    flags = ('--video_root', mine, other, '--num_workers', 1)
    assert findings(tmp_path, *flags) == (0, [])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ['videos', '11']

    save_video(mine / 'JPEGImages', mine / 'Annotations', 'two', frames=2)
    cut(mine / 'JPEGImages/my cat/00010.jpg')
    (mine / 'JPEGImages/my cat/00015.jpg').unlink()
    shutil.rmtree(other / 'Annotations')
    picture((256, 192)).save(mine / 'JPEGImages/my cat/00020.jpg')
    save_labels(mine / 'Annotations/my cat/00020.png', labels((256, 192)))
    assert findings(tmp_path, *flags) == (
        1,
        [
            ('videos', 'no image', 'mine/Annotations/my cat', ['00015']),
            ('videos', 'too short', 'mine/JPEGImages/two', []),
            ('videos', 'absent', 'other', []),
            ('videos', 'unreadable', 'mine/JPEGImages/my cat/00010.jpg', []),
            ('videos', 'size', 'mine/JPEGImages/my cat/00020.jpg', []),
        ],
    )


def test_quick_check_reads_headers(tmp_path, training_roots):
    """It misses a file that is cut off in the middle, but finds other content and wrong sizes."""
    cut(tmp_path / 'BL30K/JPEGImages/bear/00005.jpg')
    (tmp_path / 'BL30K/JPEGImages/bear/00010.jpg').write_text('text')
    save_labels(tmp_path / 'BL30K/Annotations/bear/00000.png', labels((127, 96)))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture((96, 128)).save(tmp_path / 'BL30K/JPEGImages/boat/00000.jpg', exif=rotated)  # 128 x 96 when turned upright
    status, found = findings(tmp_path, *training_roots, '--quick', '--num_workers', 1)
    assert status == 1
    assert sorted(problem[1:3] for problem in found) == [
        ('size', 'BL30K/Annotations/bear/00000.png'),
        ('unreadable', 'BL30K/JPEGImages/bear/00010.jpg'),
    ]
