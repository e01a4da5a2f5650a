"""Files, names and requests that mean harm: nothing is executed, nothing written elsewhere, nothing else read."""

import ast
import dataclasses
import http.client
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tarfile
import threading
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval_davis
import eval_youtube
import hubconf
import train
from dataset.davis import davis
from dataset.folder import folder
from dataset.io import DataError, list_frames
from dataset.youtube import youtube
from inference import load_model
from inference.clip import import_clip
from model import CheckpointError, Network, build_network, load_network
from model.checkpoint import read_checkpoint
from model.pretrained import imagenet_weights
from scripts import segment_video
from scripts.fetch import fetch
from scripts.sources import DownloadError, Source, read_sources
from scripts.unpack import ArchiveError, install, unpack
from scripts.web_tabs import Tabs
from tests.conftest import FRAMES, GOLDEN, REPOSITORY, tree
from tests.helpers import change_meta, everything, hostile_source, make_zip, tar_with, zip_with
from tests.tiny import TINY
from tests.web_server import Server, adaptation, needs_gradio, until, zip_of_frames
from training.run import Run

pytestmark = pytest.mark.usefixtures('one_thread')


# Checkpoints


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Setter:
    """Runs a command when its state is set."""

    def __init__(self, command: str):
        self.state = Command(command)


def zipped_script(path: Path, command: str) -> None:
    """What ``torch.load`` takes for a TorchScript archive, with code."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/constants.pkl', pickle.dumps(Command(command), protocol=2))
        archive.writestr('archive/data.pkl', pickle.dumps(Command(command), protocol=2))
        archive.writestr('archive/code/__torch__.py', f'import os\nos.system({command!r})\n')


def tarred(path: Path, command: str) -> None:
    """The oldest of PyTorch's layouts."""
    with tarfile.open(path, 'w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            content = pickle.dumps(Command(command), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@cache
def small() -> Network:
    return build_network(TINY)


def good() -> dict:
    return {'config': dataclasses.asdict(TINY), 'network': small().state_dict()}


PAYLOADS: dict[str, Callable[[Path, str], object]] = {
    'pickle': lambda path, command: path.write_bytes(pickle.dumps(Command(command), protocol=2)),
    'new pickle': lambda path, command: path.write_bytes(pickle.dumps(Command(command), protocol=5)),
    'opcodes': lambda path, command: path.write_bytes(f"cos\nsystem\n(S'{command}'\ntR.".encode()),
    'eval': lambda path, command: path.write_bytes(
        f'cbuiltins\neval\n(S\'__import__("os").system("{command}")\'\ntR.'.encode()
    ),
    'network': lambda path, command: torch.save({'network': Command(command)}, path),
    'tensor': lambda path, command: torch.save(good()['network'] | {'extra': Command(command)}, path),
    'config': lambda path, command: torch.save(good() | {'config': Command(command)}, path),
    'optimizer': lambda path, command: torch.save(good() | {'optimizer': Command(command), 'iteration': 1}, path),
    'scaler': lambda path, command: torch.save(good() | {'scaler': {'scale': Setter(command)}}, path),
    'key': lambda path, command: torch.save(good() | {(1, Command(command)): 1}, path),
    'legacy': lambda path, command: torch.save(
        good() | {'it': Command(command)}, path, _use_new_zipfile_serialization=False
    ),
    'script': zipped_script,
    'tar': tarred,
}


@pytest.fixture
def harm(tmp_path) -> Iterator[tuple[Path, str]]:
    """A file, and the command by which a payload would make it. At the end of the test, the file must not exist."""
    marker = tmp_path / 'harm'
    yield marker, f'touch {marker}'
    assert not marker.exists()


@pytest.mark.filterwarnings('ignore::UserWarning')  # torch's, of what the payloads are
@pytest.mark.parametrize('name', PAYLOADS)
def test_no_checkpoint_runs_code(tmp_path, harm, name):
    path = tmp_path / 'file.pth'
    PAYLOADS[name](path, harm[1])
    with pytest.raises(CheckpointError) as error:
        load_network(path)
    assert str(error.value).startswith(f'{path}: ')


def test_the_payloads_are_live(tmp_path):
    """What ``torch.load`` would do without ``weights_only``."""
    for name in ('pickle', 'opcodes', 'eval', 'optimizer', 'legacy'):
        PAYLOADS[name](tmp_path / 'file.pth', f'touch {tmp_path}/harm')
        if name in ('pickle', 'opcodes', 'eval'):
            pickle.loads((tmp_path / 'file.pth').read_bytes())
        else:
            torch.load(tmp_path / 'file.pth', weights_only=False)
        (tmp_path / 'harm').unlink()


def test_no_loader_runs_code(tmp_path, harm, davis_root, youtube_root, monkeypatch, caplog):
    """Every way by which a file of weights comes in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'evil.pth'
    PAYLOADS['optimizer'](path, harm[1])

    def script(main: Callable[[], int], *words: object) -> Callable[[], int]:
        def call() -> int:
            monkeypatch.setattr(sys, 'argv', ['script', *map(str, words)])
            return main()

        return call

    output = ('--output', tmp_path / 'out', '--device', 'cpu')
    training = ('--stage', 3, '--id', 'a', '--davis_root', tmp_path, '--yv_root', tmp_path, '--device', 'cpu')
    monkeypatch.setattr('dataset.training.find_main', lambda *_, **options: [])
    for load in (
        lambda: read_checkpoint(path),
        lambda: load_network(path),
        lambda: load_model(path, device='cpu'),
        lambda: hubconf.stcn(str(path)),
        lambda: imagenet_weights(['resnet18'], [path]),
        script(eval_davis.main, '--model', path, '--davis_path', davis_root, *output),
        script(eval_youtube.main, '--model', path, '--yv_path', youtube_root, *output),
        script(
            segment_video.main,
            '--input',
            GOLDEN / 'clip',
            '--mask',
            GOLDEN / 'first_mask.png',
            '--no_overlay',
            '--model',
            path,
            *output,
        ),
        script(train.main, *training, '--load_network', path),
        script(train.main, *training, '--load_model', path),
        script(train.main, *training, '--backbone_weights', path),
    ):
        with pytest.raises(CheckpointError, match=r'evil\.pth: '):
            load()
    assert not (tmp_path / 'out').exists()

    run = Run(tmp_path / 'saves' / 'b')
    run.folder.mkdir(parents=True)
    path.rename(run.folder / 'checkpoint_00000001.pth')
    assert run.newest() is None
    assert 'checkpoint_00000001.pth: ' in caplog.text


def test_there_is_no_other_loader():
    """Every call that unpickles does so with ``weights_only``, and no code evaluates text or starts shells."""
    for path in REPOSITORY.rglob('*.py'):
        if 'tests' in path.relative_to(REPOSITORY).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            assert name not in (
                'eval',
                'exec',
                'compile',
                '__import__',
                'os.system',
                'os.popen',
                'pickle.load',
                'pickle.loads',
                'marshal.loads',
                'shutil.unpack_archive',
                'tempfile.mktemp',
            ), path
            assert not name.endswith(('.extractall', '.extract', 'load_state_dict_from_url')), path
            assert options.get('shell', 'False') == 'False', path
            assert options.get('allow_pickle', 'False') == 'False', path
            if name == 'torch.load':
                assert str(path.relative_to(REPOSITORY)) in ('model/checkpoint.py', 'inference/continuing.py')
                assert options['weights_only'] == 'True'
            if name.endswith('get_state_dict'):
                assert (options['weights_only'], options['check_hash']) == ('True', 'True')


def claims(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Tensors of any size, in a file that holds one number of each."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_a_small_file_claims_no_memory(tmp_path):
    from model import STCN

    config = dataclasses.replace(TINY, value_dim=400_000, decoder_widths=(400_000, 16))
    with torch.device('meta'):
        shapes = {name: value.shape for name, value in STCN(config).state_dict().items()}
    assert sum(map(torch.Size.numel, shapes.values())) > 1e12  # which no machine has
    path = tmp_path / 'file.pth'
    torch.save({'config': dataclasses.asdict(config), 'network': claims(shapes)}, path)
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match=r'file\.pth: its tensors claim [0-9]{14} bytes'):
        load_network(path)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (torch.empty(1, device='meta'), 'expected a plain tensor, found .* on meta'),
        (torch.zeros(1).to_sparse(), 'expected a plain tensor, found .*sparse'),
        (torch.zeros(1, dtype=torch.complex64), 'expected a plain tensor, found torch.complex64'),
        (torch.tensor([float('nan')]), 'expected finite numbers'),
        (torch.tensor([float('inf')], dtype=torch.float16), 'expected finite numbers'),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, value, message):
    content = good()
    torch.save(content | {'network': content['network'] | {'decoder.pred.bias': value}}, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=rf'file\.pth: decoder\.pred\.bias: .*{message}'):
        load_network(tmp_path / 'file.pth')


@pytest.mark.parametrize(
    'change',
    [
        {'similarity': 'evil'},
        {'similarity': None},
        {'key_dim': 10**30},
        {'key_dim': -1},
        {'key_dim': 0.5},
        {'decoder_widths': 'ab'},
        {'decoder_widths': []},
        {'aspp_dim': 'x'},
        {'key_backbone': ['resnet18']},
        {'arch': ['stcn']},
        {'__class__': 'x'},
    ],
)
def test_configurations_that_are_none(tmp_path, change):
    content = good()
    torch.save(content | {'config': content['config'] | change}, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=r'file\.pth: its configuration is not understood'):
        load_network(tmp_path / 'file.pth')


# Archives; the rest is in test_data_scripts.py


def overlapping(size: int, times: int) -> bytes:
    """A zip whose directory lists the same data again and again."""
    data = zip_with(('zeros', bytes(size)))
    start = data.index(b'PK\x01\x02')
    entry, end = data[start : data.index(b'PK\x05\x06')], bytearray(data[data.index(b'PK\x05\x06') :])
    end[8:12] = 2 * times.to_bytes(2, 'little')
    end[12:16] = (times * len(entry)).to_bytes(4, 'little')
    return data[:start] + times * entry + bytes(end)


def old_sparse() -> bytes:
    """GNU's first layout of files with holes: a kilobyte that unpacks to 900 GB."""
    info = tarfile.TarInfo('sparse')
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b'%011o\0' % 0
    header[398:410] = b'%011o\0' % 0
    header[483:495] = b'\x80\0\0\0' + (9 * 10**11).to_bytes(8, 'big')
    header[148:156] = b'        '
    header[148:156] = b'%06o\0 ' % sum(header[:512])
    return bytes(header) + bytes(10_240)


HOSTILE = {
    'many files.zip': (lambda: make_zip({f'{i:05}': b'' for i in range(10_001)}), 'that unpack to 10,001 files'),
    'overlapping.zip': (lambda: overlapping(100_000, 500), 'that unpack to'),
    'deep.zip': (lambda: zip_with(('a/' * 900 + 'a', b'x')), '901 folders deep'),
    'deep.tar': (lambda: tar_with({'name': 'a/' * 900 + 'a', 'content': b'x'}), '901 folders deep'),
    'deep folder.tar': (lambda: tar_with({'name': 'a/' * 900, 'type': tarfile.DIRTYPE}), '900 folders deep'),
    'lzma.zip': (lambda: zip_with(('a', b'x' * 100), compress_type=zipfile.ZIP_LZMA), 'a rare compression'),
    'bzip2.zip': (lambda: zip_with(('a', b'x' * 100), compress_type=zipfile.ZIP_BZIP2), 'a rare compression'),
    'socket.zip': (lambda: zip_with(('a', b''), mode=0o140666), 'is a special file'),
    'sparse.tar': (old_sparse, 'is a special file|Delete it'),
    'NUL.zip': (lambda: make_zip({'a/b': b'x'}).replace(b'a/b', b'/\0b'), 'could lead out|both a file'),
    'only dots.tar': (lambda: tar_with({'name': '..', 'content': b'x'}), 'could lead out'),
    'drive.tar': (lambda: tar_with({'name': 'C:evil', 'content': b'x'}), 'could lead out'),
    'backslashes.tar': (lambda: tar_with({'name': '..\\..\\evil', 'content': b'x'}), 'could lead out'),
    'unknown type.tar': (
        lambda: tar_with({'name': 'a', 'type': b'Z', 'content': b'x'}),
        'refused|expected JPEGImages',
    ),
    'a long link name.tar': (
        lambda: tar_with({'name': 'a' * 90, 'type': tarfile.SYMTYPE, 'linkname': '../' * 300}),
        'is a link',
    ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_archive(tmp_path, name):
    """The archive is refused with the right reason, and nothing was written or changed."""
    make, reason = HOSTILE[name]
    source = hostile_source(tmp_path, make(), Path(name).suffix)
    before = everything(tmp_path)
    with pytest.raises(ArchiveError, match=f'^{source.archive}: .*({reason})'):
        install(source)
    assert everything(tmp_path) == before


def test_a_name_that_no_file_can_have(tmp_path):
    source = hostile_source(tmp_path, zip_with(('a' * 300, b'x')), '.zip')
    before = everything(tmp_path)
    with pytest.raises(OSError, match='too long'):
        install(source)
    assert everything(tmp_path) == before


def test_many_files_that_hold_something_are_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr('scripts.unpack.FEW_FILES', 100)
    files = {f'JPEGImages/{i}': os.urandom(300) for i in range(300)}
    source = hostile_source(tmp_path, make_zip(files), '.zip')
    unpack(source.archive, tmp_path / 'unpacked')
    assert len(list((tmp_path / 'unpacked' / 'JPEGImages').iterdir())) == 300


@pytest.mark.parametrize(
    'entry',
    [
        {'to': '../out'},
        {'to': '/tmp/out'},
        {'to': 'a/../../out'},
        {'to': 'C:\\out'},
        {'to': 'a', 'archive': '../a.zip'},
        {'to': 'a', 'archive': 'a.zip', 'holds': ['../../etc']},
        {'to': 3},
        {'url': 'http://127.0.0.1/'},
        'text',
    ],
)
def test_lists_of_sources_that_lead_elsewhere(tmp_path, entry):
    path = tmp_path / 'sources.json'
    base = {'name': 'evil', 'url': 'http://127.0.0.1:9/'}
    path.write_text(json.dumps({'davis': [base | entry if isinstance(entry, dict) else entry]}))
    with pytest.raises(DownloadError, match=r'sources\.json: expected a list'):
        read_sources(path, root=tmp_path / 'data', saves=tmp_path / 'saves')


def test_only_servers_are_asked(tmp_path):
    """urllib would also read this computer's files, which a list or a page could name."""
    (tmp_path / 'secret').write_text('secret')
    url = (tmp_path / 'secret').as_uri()
    source = Source('evil', url, url, tmp_path / 'data' / 'out')
    with pytest.raises(DownloadError, match='expected an address that begins with http'):
        fetch(source)
    assert not tree(tmp_path / 'data')

    page = f'<form id="download-form" action="{url}"></form>'.encode()
    with (
        served(lambda handler: handler.reply(page, {'Content-Type': 'text/html'})) as address,
        pytest.raises(DownloadError, match='expected an address that begins with http'),
    ):
        fetch(dataclasses.replace(source, url=address))
    with (
        served(lambda handler: handler.reply(b'', {'Location': url}, status=302)) as address,
        pytest.raises(DownloadError, match='302'),
    ):
        fetch(dataclasses.replace(source, url=address))
    assert not tree(tmp_path / 'data')


def test_a_stream_without_an_end_leaves_room(tmp_path, monkeypatch):
    """A server that does not say how much it sends must not fill the disk. (This one stops after 64 MB.)"""
    free = iter([10 * 10**9, 5 * 10**9] + 1000 * [10**9])
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('usage', (), {'free': next(free)}))

    def endless(handler) -> None:
        handler.reply(b'', {})
        try:
            for _ in range(1000):
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            pass  # nobody listens any more

    with served(endless) as address, pytest.raises(OSError, match=r'needs 2\.0 GB of free disk, found 1\.0 GB'):
        fetch(Source('endless', address, address, tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.answer(self)

    def reply(self, body: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


class served:
    """A server on this computer, for a block."""

    def __init__(self, answer: Callable[[Handler], None]):
        self.server = HTTPServer(('127.0.0.1', 0), Handler)
        self.server.answer = answer

    def __enter__(self) -> str:
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
        self.thread.start()
        return f'http://127.0.0.1:{self.server.server_port}/'

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(60)


# Names


LONG = 'x' * 300
VIDEOS = [
    '../x',
    '/etc',
    '',
    '.',
    '..',
    '.hidden',
    'a/b',
    'a\\b',
    '..\\x',
    'a\nb',
    'a\rb',
    'a\tb',
    'a\x1bb',
    'a\0b',
    'C:x',
    '\ud800\\',
    '\ud800',
    LONG,
]


@pytest.mark.parametrize('name', VIDEOS)
def test_videos_of_meta_json(youtube_root, tmp_path, monkeypatch, name):
    """An error that names the file, before anything is written anywhere."""
    change_meta(youtube_root, lambda videos: videos.update({name: videos.pop('0a1b')}))
    before = tree(tmp_path)
    monkeypatch.setattr(
        sys,
        'argv',
        ['eval_youtube.py', '--yv_path', str(youtube_root), '--device', 'cpu', '--output', str(tmp_path / 'out')],
    )
    with pytest.raises(DataError, match=r'meta\.json: expected the name of a video') as error:
        eval_youtube.main()
    assert len(str(error.value)) < 400
    assert tree(tmp_path) == before


@pytest.mark.parametrize('name', ['../../0a1b/00000', '/etc/passwd', '', '.', '..', 'a\\b', '00000\n', '0\0', LONG])
def test_frames_of_meta_json(youtube_root, name):
    """They only choose among the files that are there."""
    change_meta(youtube_root, lambda videos: videos['0a1b']['objects']['2']['frames'].insert(0, name))
    with pytest.raises(DataError, match=r'0a1b: frames that meta\.json lists are missing'):
        youtube(youtube_root)


def test_meta_json_without_a_bottom(youtube_root):
    (youtube_root / 'valid' / 'meta.json').write_text('[' * 100_000)
    with pytest.raises(DataError, match=r'meta\.json: expected'):
        youtube(youtube_root)


@pytest.mark.parametrize('name', [name for name in VIDEOS if name.split() == [name] and name.isprintable()] + ['a\0b'])
def test_videos_of_image_sets(davis_root, name):
    (davis_root / 'trainval' / 'ImageSets' / '2017' / 'val.txt').write_text(f'dog\n{name}\n')
    with pytest.raises(DataError, match=r'val\.txt: expected the name of a video'):
        davis(davis_root)


@pytest.mark.parametrize('name', ['a\\..\\b', 'a\nb', '\x1b[2J', 'x' * 246, 'caf\udce9'])
def test_names_of_files_and_folders(folder_root, name):
    """Outside of Linux a backslash leads elsewhere, in an archive of the masks, too."""
    frame = folder_root / 'JPEGImages' / 'cat' / f'{name}.jpeg'
    (folder_root / 'JPEGImages' / 'cat' / '1.jpeg').rename(frame)
    for read in (lambda: list_frames(frame.parent), lambda: folder(folder_root)):
        with pytest.raises(DataError, match='expected a name of up to 240 bytes') as error:
            read()
        assert repr(str(frame)) in str(error.value)
    frame.rename(folder_root / 'JPEGImages' / 'cat' / '1.jpeg')
    (folder_root / 'JPEGImages' / 'dog').rename(folder_root / 'JPEGImages' / name)
    with pytest.raises(DataError, match='expected a name of up to 240 bytes'):
        folder(folder_root)
    if len(name) < 240:
        (folder_root / 'JPEGImages' / name).rename(folder_root / 'JPEGImages' / f'v.{name}')
        with pytest.raises(DataError, match='expected a name of up to 240 bytes'):
            folder(folder_root)


def test_a_name_that_is_not_utf8_of_a_single_video(folder_root):
    """The masks get the name of the root."""
    root = folder_root.with_name('caf\udce9')
    for part in ('JPEGImages', 'Annotations'):
        shutil.copytree(folder_root / part / 'cat', root / part)
    with pytest.raises(DataError, match='expected a name of up to 240 bytes in UTF-8'):
        folder(root)


def test_names_that_are_only_unusual(folder_root):
    names = ['0 ü 漢字 \u202fPM', "it's #1 & <b>", 'a..b', '12:30', 'x' * 240]
    for name, path in zip(names, list_frames(folder_root / 'JPEGImages' / 'dog'), strict=False):
        path.rename(path.with_stem(name))
    assert {path.stem for path in list_frames(folder_root / 'JPEGImages' / 'dog')} >= set(names)


@pytest.mark.parametrize('names', [['a\\..\\b.png'], ['a\nb.png'], [f'{LONG}.png'], ['C:b.png']])
def test_names_of_an_uploaded_zip(tmp_path, names):
    (tmp_path / 'clip.zip').write_bytes(zip_with(*((name, FRAMES[0].read_bytes()) for name in names)))
    with pytest.raises(DataError, match=r'clip\.zip: expected the name'):
        import_clip(tmp_path / 'clip.zip', tmp_path / 'in', max_seconds=9, max_bytes=10**7)
    assert set(tree(tmp_path)) == {'clip.zip'}


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (zip_with(('1.png', b'x' * 100), compress_type=zipfile.ZIP_LZMA), r'1\.png: compressed by method 14'),
        (zip_with(('1.png', b'x' * 100), compress_type=zipfile.ZIP_BZIP2), r'1\.png: compressed by method 12'),
        (zip_with(*((f'{i}.png', b'') for i in range(226))), 'longer than the 9 seconds'),
        (zip_with(('1.png', b'../../../etc/passwd'), mode=0o120777), r'1\.png: expected an image'),
        (zip_with(('1.png/', b'')), r'1\.png: expected an image|no images'),
    ],
)
def test_uploaded_zips(tmp_path, data, message):
    (tmp_path / 'clip.zip').write_bytes(data)
    with pytest.raises(DataError, match=message):
        import_clip(tmp_path / 'clip.zip', tmp_path / 'in', max_seconds=9, max_bytes=10**7)


def test_mutated_uploads(tmp_path):
    """An upload with some bytes changed gives a clip or an error for the user, and writes nothing elsewhere."""
    rng = np.random.default_rng(0)
    content = make_zip({f'{number}.png': path.read_bytes()[:3000] for number, path in enumerate(FRAMES[:2])})
    Image.new('RGB', (4, 4)).save(tmp_path / 'small.png')
    small = make_zip({'1.png': (tmp_path / 'small.png').read_bytes()})
    for number in range(200):
        data = bytearray(small if number % 2 else content)
        places = rng.integers(len(data) if number % 2 else 100, size=rng.choice([1, 3, 10]))
        for place in places:
            data[place if number % 4 < 2 else -place - 1] = rng.integers(256)
        (tmp_path / 'clip.zip').write_bytes(data)
        with suppress(DataError):
            import_clip(tmp_path / 'clip.zip', tmp_path / f'in{number}', max_seconds=9, max_bytes=10**7)
        assert set(tree(tmp_path)) - {'clip.zip', 'small.png'} <= {
            str(path.relative_to(tmp_path)) for path in (tmp_path / f'in{number}' / 'frames').glob('*')
        }
        for path in (tmp_path / f'in{number}' / 'frames').glob('*'):
            path.unlink()


def test_a_video_of_too_many_frames_for_its_time(tmp_path, monkeypatch):
    """Timestamps say nothing about how many frames there are."""

    class Video:
        width, height, time_base, frame_rate = 16, 16, 1, 1000

        def __init__(self, path: Path):
            pass

        def __enter__(self) -> 'Video':
            return self

        def __exit__(self, *_) -> None:
            pass

        def __iter__(self) -> Iterator:
            return iter(1000 * [(np.zeros((16, 16, 3), np.uint8), 0)])

    monkeypatch.setattr('inference.clip.VideoReader', Video)
    (tmp_path / 'clip.mp4').write_bytes(b'x')
    with pytest.raises(DataError, match='longer than the 1 seconds'):
        import_clip(tmp_path / 'clip.mp4', tmp_path / 'in', max_seconds=1, max_bytes=10**7)
    assert len(list((tmp_path / 'in' / 'frames').iterdir())) == 240


# The web page; the rest is in test_web.py


@pytest.fixture
def tabs(small_network, tmp_path) -> Tabs:
    return Tabs(small_network, tmp_path / 'clips', max_seconds=9, max_bytes=10**7, adapting=adaptation(small_network))


def upload_of(folder: Path, name: str = 'clip.zip') -> Path:
    return zip_of_frames(folder / name, 2, (64, 48))


def test_a_page_that_is_closed_while_its_clip_comes_in(tabs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        'scripts.web_tabs.import_clip', lambda *args, **options: tabs.drop('key') or import_clip(*args, **options)
    )
    with pytest.raises(DataError, match=r'clip\.zip: the page was closed'):
        tabs.open('key', upload_of(tmp_path))
    assert not tabs.tabs
    assert list(tabs.folder.iterdir()) == []
    monkeypatch.undo()
    tabs.open('key', upload_of(tmp_path))  # a page that comes back
    assert len(list(tabs.folder.iterdir())) == 1
    tabs.close()
    assert list(tabs.folder.iterdir()) == []


def test_a_page_that_is_closed_while_a_frame_is_computed(tabs, tmp_path, monkeypatch):
    """The frame is written after the folder was deleted; then the folder is deleted again."""
    tab = tabs.open('key', upload_of(tmp_path))
    monkeypatch.setattr(
        tab,
        'busy',
        type(
            'Impatient',
            (),
            {'acquire': lambda self, blocking=True, timeout=-1: not timeout > 0, 'release': lambda self: None},
        )(),
    )
    with tab.alone():
        tabs.drop('key')
        assert not tab.session.folder.exists()
        tab.session.paint(0, np.ones((48, 64), np.uint8))
        assert tab.session.folder.exists()
    assert not tab.session.folder.exists()


@pytest.mark.parametrize('links', [True, False])
def test_two_pages_that_upload_the_same_file(tabs, tmp_path, monkeypatch, links):
    """Both get the same path. The file system may have no links."""

    def refuse(*_) -> None:
        raise PermissionError

    upload = upload_of(tmp_path)
    if not links:
        monkeypatch.setattr('os.link', refuse)
    one, other = tabs.open('one', upload), tabs.open('other', str(upload))
    for tab in (one, other):
        inside = tab.session.folder / 'upload' / 'clip.zip'
        assert inside.read_bytes() == upload.read_bytes()
        assert inside.samefile(upload) == links
    tabs.drop('one')
    assert len(other.session) == 2
    tabs.open('one', upload)
    tabs.close()
    assert upload.exists()


class Page:
    """A page without a browser: what gradio's JavaScript sends, and what it may not send."""

    def __init__(self, server: Server):
        self.server = server
        self.session = uuid.uuid4().hex
        config = json.loads(urllib.request.urlopen(f'{server.url}config').read())
        # The first function that an upload calls is the one that opens a clip.
        self.load = next(
            each['id'] for each in config['dependencies'] if ['upload'] in [target[1:] for target in each['targets']]
        )

    def upload(self, path: Path, name: str | None = None) -> list[str]:
        """Upload a file. Returns the paths where the server has put it."""
        bound = uuid.uuid4().hex
        body = (
            f'--{bound}\r\nContent-Disposition: form-data; name="files"; filename="{name or path.name}"\r\n'
            'Content-Type: application/octet-stream\r\n\r\n'
        ).encode() + path.read_bytes()
        request = urllib.request.Request(
            f'{self.server.url}gradio_api/upload',
            data=body + f'\r\n--{bound}--\r\n'.encode(),
            headers={'Content-Type': f'multipart/form-data; boundary={bound}'},
        )
        return json.loads(urllib.request.urlopen(request).read())

    def open(self, path: str) -> list[dict]:
        """Open the uploaded file at this path on the server. Returns the messages that the server then sends."""
        data = {
            'data': [{'path': path, 'meta': {'_type': 'gradio.FileData'}}],
            'fn_index': self.load,
            'session_hash': self.session,
        }
        urllib.request.urlopen(
            urllib.request.Request(
                f'{self.server.url}gradio_api/queue/join',
                data=json.dumps(data).encode(),
                headers={'Content-Type': 'application/json'},
            )
        ).read()
        messages = []
        with urllib.request.urlopen(f'{self.server.url}gradio_api/queue/data?session_hash={self.session}') as stream:
            for line in stream:
                if line.startswith(b'data: '):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]['msg'] == 'process_completed':
                        return messages
        raise AssertionError(messages)

    def stay(self) -> http.client.HTTPConnection:
        """Open the connection that tells the server that the page is there, until it is closed."""
        connection = http.client.HTTPConnection('127.0.0.1', self.server.port)
        connection.request('GET', f'/gradio_api/heartbeat/{self.session}')
        return connection


def warnings(messages: list[dict]) -> str:
    return ' '.join(message['log'] for message in messages if message['msg'] == 'log')


@pytest.fixture(scope='module')
def server(small_checkpoint, tmp_path_factory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('PYTHONPATH')  # without the tests' guard: it has one of its own
        server = Server(
            tmp_path_factory.mktemp('server'),
            '--model',
            str(small_checkpoint),
            '--size',
            '0',
            '--max_megabytes',
            '1',
            '--max_seconds',
            '1',
        )
    yield server
    server.process.send_signal(signal.SIGHUP)  # as a terminal that is closed
    assert server.process.wait(300) == 0
    assert list(server.folder.iterdir()) == [server.log]


@needs_gradio
def test_uploads_stay_where_they_belong(server, tmp_path):
    page, clip = Page(server), upload_of(tmp_path)
    before = {path for path in server.folder.parent.rglob('*') if server.folder not in path.parents}
    for name in ('../../../evil.zip', '/tmp/evil.zip', '..\\..\\evil.zip', '..', '.', 'a\nb.zip', 500 * 'x' + '.zip'):
        try:
            [path] = page.upload(clip, name)
        except urllib.error.HTTPError:
            continue
        assert Path(path).resolve().is_relative_to(server.folder)
        assert len(Path(path).relative_to(server.folder).parts) == 4  # stcn_web_*/gradio/HASH/NAME
    after = {path for path in server.folder.parent.rglob('*') if server.folder not in path.parents}
    assert after == before
    assert not Path('/tmp/evil.zip').exists()


@needs_gradio
def test_only_what_was_uploaded_is_opened(server, tmp_path):
    """The page takes the file that it is asked to open, so it must be one that was uploaded to this page."""
    page, clip = Page(server), upload_of(tmp_path)
    [uploaded] = page.upload(clip)
    other = Path(uploaded).parent / '..' / '..' / '..' / 'log'
    for path in (
        clip,
        REPOSITORY / 'README.md',
        '/etc/passwd',
        other,
        'http://127.0.0.1/',
        'https://192.0.2.1/a.zip',
        'https://test.invalid/a.zip',
        'file:///etc/passwd',
    ):
        messages = page.open(str(path))
        assert not messages[-1]['success'] or warnings(messages)
        assert not server.clips()
    assert clip.exists()
    assert (REPOSITORY / 'README.md').exists()
    assert 'this process stays on its computer' in server.log.read_text()
    assert page.open(uploaded)[-1]['success']
    [folder] = server.clips()
    frame = folder / 'frames' / '00000.png'
    assert frame.exists()
    shown = folder / 'shown' / '0' / 'frame.png'
    assert shown.exists()
    for path in (frame, shown, folder / 'upload' / 'clip.zip'):  # not by their own address
        assert server.status(f'gradio_api/file={path}') == 403
        assert server.status(f'gradio_api/file={str(path).replace("/", "%2f")}') == 403
        assert server.status(f'gradio_api/file={uploaded}/../../../clips/{folder.name}/frames/{path.name}') == 403


@needs_gradio
def test_limits_speak(server, tmp_path):
    page = Page(server)
    (tmp_path / 'large.mp4').write_bytes(bytes(1_100_000))
    with pytest.raises(urllib.error.HTTPError) as error:
        page.upload(tmp_path / 'large.mp4')
    assert error.value.code == 413
    assert b'maximum allowed size' in error.value.read()
    [path] = page.upload(zip_of_frames(tmp_path / 'long.zip', 26, (16, 16)))
    assert 'long.zip: longer than the 1 seconds that are allowed (25 images count as a second' in warnings(
        page.open(path)
    )
    (tmp_path / 'bad.zip').write_bytes(zip_with(('a\\<img src=x onerror=alert(1)>.png', b'x')))
    [path] = page.upload(tmp_path / 'bad.zip')
    assert '&lt;img src=x' in warnings(page.open(path))  # the browser would take it for HTML


@needs_gradio
def test_a_page_that_goes_away_leaves_nothing(server, tmp_path):
    page = Page(server)
    connection = page.stay()
    [path] = page.upload(upload_of(tmp_path))
    before = set(server.clips())
    assert page.open(path)[-1]['success']
    [clip] = set(server.clips()) - before
    assert Path(path).samefile(clip / 'upload' / 'clip.zip')  # a link, which takes no room
    connection.close()  # no farewell, as of a computer that is switched off
    until(lambda: not clip.exists())


@needs_gradio
def test_nothing_else_is_served(server):
    files = (
        '%2fetc%2fpasswd',
        '/proc/self/environ',
        '..%2f..%2fetc%2fpasswd',
        'scripts/web.py',
        '.git/config',
        *(f'{REPOSITORY}/{name}' for name in ('scripts/web.py', 'weights/stcn_light.pth', '.git/config')),
    )
    for path in (
        *(f'gradio_api/file={file}' for file in files),
        'gradio_api/vibe-code',
        'gradio_api/dev/reload',
        'gradio_api/proxy=https://test.invalid/',
        'static/%2e%2e/%2e%2e/routes.py',
        'svelte/../../routes.py',
        'assets/%2e%2e/%2e%2e/%2e%2e/routes.py',
        'scripts/web.py',
        'README.md',
        '.git/config',
        'monitoring',
        'gradio_api/custom_component/x/client/component/..%2f..%2froutes.py',
    ):
        assert server.status(path) in (403, 404), path
    for path in (
        'gradio_api/process_recording',
        'gradio_api/vibe-edit',
        'gradio_api/run/load',
        'gradio_api/api/load',
        'login',
    ):
        request = urllib.request.Request(
            server.url + path, data=b'{"data": []}', headers={'Content-Type': 'application/json'}
        )
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code in (403, 404, 405, 422), path
