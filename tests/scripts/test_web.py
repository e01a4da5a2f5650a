"""The web page: what was painted becomes labels, nothing else is served, and a whole session in a real browser."""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.io import PALETTE, list_frames, read_image, read_mask, write_binary_mask, write_mask
from inference.clip import Clip, import_clip
from inference.session import Session
from scripts.web_paint import COLOURS, SHOWN_ALPHA, labels_of, layer_of
from scripts.web_tabs import Tab, Tabs
from tests.conftest import FRAMES, REPOSITORY, make_small_network
from tests.web_server import PATIENCE, SWAN, Server, adaptation, needs_gradio, until, zip_of_frames
from training import adapt

pytestmark = pytest.mark.long

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
ARGUMENTS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    # Other computers are out of reach. Playwright's routes would do that, too, and slow down every request.
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
]
W, H = 214, 120  # of the clip in the browser
LONG = 500  # frames of a clip whose propagation does not end by itself


def test_layer_and_back():
    labels = np.random.default_rng(0).integers(0, len(COLOURS) + 1, (60, 80)).astype(np.uint8)
    nothing = np.zeros_like(labels)
    brushes = range(1, len(COLOURS) + 1)
    assert np.array_equal(labels_of(layer_of(labels), nothing, brushes), labels)
    opaque = layer_of(labels)
    opaque[..., 3] = 255 * (labels > 0)
    assert np.array_equal(labels_of(opaque, nothing, brushes), labels)


def test_a_layer_of_many_objects_stays_what_it_is():
    """Their colours may be mixtures of others'; only what a brush painted, or smoothed, is judged by its colour."""
    labels = np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8)
    assert np.array_equal(labels_of(layer_of(labels), labels, [1]), labels)
    layer = layer_of(labels)
    layer[:, 40:60] = *PALETTE[9], 255
    layer[:, 60] = *((PALETTE[9].astype(int) + PALETTE[200]) // 2), 255
    found = labels_of(layer, labels, [9])
    assert (found[:, 40:60] == 9).all()
    assert np.array_equal(found[:, :40], labels[:, :40])
    assert np.array_equal(found[:, 61:], labels[:, 61:])


def painted_smoothly(background: int, disc: int, alpha: int) -> tuple[np.ndarray, np.ndarray]:
    """A layer with an anti-aliased disc over a half that is filled (labels; 0 is nothing); and its crisp labels."""
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(x - 40, y - 30)
    cover = np.clip(15.5 - distance, 0, 1)[..., None]  # of the disc, over one pixel
    under = np.where(x < 40, background, 0).astype(np.uint8)
    under_alpha = (alpha / 255) * (under > 0)[..., None]
    disc_alpha = cover if disc else 0 * cover
    mixed_alpha = disc_alpha + under_alpha * (1 - cover)
    colours = PALETTE[disc] * disc_alpha + PALETTE[under] * under_alpha * (1 - cover)
    colours = np.divide(colours, mixed_alpha, where=mixed_alpha > 0, out=np.zeros_like(colours))
    layer = np.concatenate([colours, 255 * mixed_alpha], axis=-1).round().astype(np.uint8)
    return layer, np.where(distance < 15, disc, under).astype(np.uint8)


@pytest.mark.parametrize('alpha', [SHOWN_ALPHA, 255])
def test_smooth_edges_make_no_other_objects(alpha):
    """Every object, and the eraser, over every object."""
    for under in range(len(COLOURS) + 1):
        for disc in range(len(COLOURS) + 1):
            layer, expected = painted_smoothly(under, disc, alpha)
            labels = labels_of(layer, np.zeros_like(expected), range(1, len(COLOURS) + 1))
            assert set(np.unique(labels)) == set(np.unique(expected))
            y, x = np.nonzero(labels != expected)
            assert (np.abs(np.hypot(x - 40, y - 30) - 15) <= 1.5).all()


def test_layer_of_mixtures_only():
    assert not labels_of(np.full((5, 5, 4), 200, np.uint8), np.zeros((5, 5), np.uint8), [1]).any()


def test_without_gradio_it_says_what_to_install(tmp_path):
    (tmp_path / 'gradio.py').write_text("raise ModuleNotFoundError('no', name='gradio')")
    result = subprocess.run(
        [sys.executable, 'scripts/web.py'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    )
    assert result.returncode == 1
    assert result.stderr == 'error: the page needs gradio: pip install -r requirements-extras.txt\n'


@pytest.fixture(scope='module')
def server(resnet_checkpoint, tmp_path_factory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp('server'),
        '--model',
        str(resnet_checkpoint),
        '--size',
        '0',
        '--max_megabytes',
        '8',
        '--adapt_seconds',
        '2',
    )
    yield server
    server.stop()
    assert server.process.returncode == 0
    assert list(server.folder.iterdir()) == [server.log]  # nothing is left
    # Errors of the page; a browser that breaks off leaves one of the server.
    assert not re.search(r'^(?!ERROR: +Exception in ASGI).*\nTraceback', server.log.read_text(), re.MULTILINE)


@needs_gradio
def test_the_documented_keys_are_those_of_the_page():
    from scripts.web_page import KEYS

    assert KEYS in (REPOSITORY / 'docs' / 'page.md').read_text()


@needs_gradio
def test_only_the_page_is_served(server):
    assert server.status('') == 200
    private = [REPOSITORY / 'README.md', server.log, Path('/etc/passwd'), Path('README.md')]
    for path in private:
        assert server.status(f'gradio_api/file={path}') == 403
        assert server.status(f'gradio_api/file/{path}') in (403, 404)
    for path in (
        'gradio_api/file=http://127.0.0.1/',
        'gradio_api/proxy=http://127.0.0.1/',
        'monitoring/summary',
        'assets/..%2f..%2f..%2f..%2fetc/passwd',
        'static/..%2f..%2f..%2fREADME.md',
    ):
        assert server.status(path) in (403, 404)
    # Other pages in the same browser, by their name or by one that leads here.
    assert server.status('config', Origin='http://example.com') == 403
    assert server.status('config', Origin='http://127.0.0.1:1') == 403
    assert server.status('config', Host='example.com') == 403
    assert server.status('config', Origin=server.url.rstrip('/')) == 200


@needs_gradio
def test_only_this_computer_is_served(server):
    listening = {
        tuple(line.split()[1].split(':'))
        for table in ('tcp', 'tcp6')
        if Path('/proc/net', table).exists()
        for line in Path('/proc/net', table).read_text().splitlines()[1:]
        if line.split()[3] == '0A'
    }
    if not listening:
        pytest.skip('needs /proc/net')
    assert {address for address, port in listening if int(port, 16) == server.port} == {'0100007F'}


@needs_gradio
def test_a_network_adapts_and_is_undone(small_network, first_mask, tmp_path, monkeypatch):
    """Of a page without a browser."""
    import gradio

    from scripts.web_page import build

    counter, runs, told = itertools.count(), itertools.count(1), []
    monkeypatch.setattr(gradio, 'Warning', told.append)
    monkeypatch.setattr(time, 'process_time', lambda: float(next(counter)))  # a second is an iteration
    monkeypatch.setattr(adapt, 'CROP_SIZE', 64)
    monkeypatch.setattr(adapt, 'LEARNING_RATE', 1e-2)
    tabs = Tabs(small_network, tmp_path, max_seconds=9, max_bytes=10**7, adapting=adaptation(small_network))
    session = Session(small_network, Clip.of_images(FRAMES[:4]), tmp_path / 'clip')
    tab = tabs.tabs['key'] = Tab(session, 'clip')
    call = {event.name: event.fn for event in build(tabs).fns.values()}
    request = type('Request', (), {'session_hash': 'key'})

    def statuses(updates) -> list[str]:
        return [text for update in updates for element, text in update.items() if element.elem_id == 'status']

    def propagated() -> list[np.ndarray]:
        list(call['forward'](None, False, next(runs), request))
        return [session.labels(frame) for frame in range(4)]

    list(call['adapt'](None, next(runs), request))
    assert told == ['Nothing is painted yet. Paint an object where it is seen well.']
    session.paint(0, first_mask.numpy())
    before = propagated()
    said = statuses(call['adapt'](None, next(runs), request))
    assert said[:-1] == [f'Adapting to this video: {percent} %' for percent in (17, 33, 50, 67, 83)]
    assert said[-1].startswith('Adapted. Now propagate again.')
    assert said[-1].endswith('The network is adapted to this video.')
    adapted = session.networks
    after = propagated()
    assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True))

    assert 'adapted to this video' not in statuses([call['unadapt'](request)])[0]
    assert all(np.array_equal(*pair) for pair in zip(before, propagated(), strict=True))
    assert 'Undone: propagating' in statuses([call['undo'](request)])[0]
    assert 'Undone: going back to the original network.' in statuses([call['undo'](request)])[0]
    assert session.networks is adapted
    assert statuses([call['undo'](request)])[0].startswith('Undone: propagating')
    assert statuses([call['undo'](request)])[0].startswith('Undone: adapting to this video.')
    assert session.networks is tab.original
    call['unadapt'](request)
    assert told[1:] == ['The network is the original one already.']

    number = next(runs)
    steps = call['adapt'](None, number, request)
    next(steps)
    call['undo'](request)
    assert told[2:] == ['The clip is being propagated, or its network adapts. Stop that first, or wait.']
    call['stop'](number, request)
    assert statuses(steps)[-1].startswith('Stopped; the network is as it was.')
    assert session.networks is tab.original

    # A stop may come before what is to be stopped has begun, and stops nothing later.
    number = next(runs)
    call['stop'](number, request)
    assert statuses(call['adapt'](None, number, request))[-1].startswith('Stopped; the network is as it was.')
    assert statuses(call['backward'](None, False, number, request))[-1].startswith('Stopped.')
    assert statuses(call['both'](None, False, next(runs), request))[-1].startswith('Done.')


@pytest.fixture(scope='module')
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip('there is no Chromium')
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    """A person at a browser tab. Positions are pixels of the frame."""

    def __init__(self, page, size: tuple[int, int] = (W, H)):
        self.page = page
        self.size = size
        page.set_default_timeout(PATIENCE * 1000)

    def upload(self, path: Path) -> None:
        self.page.locator('#file input[type=file]').set_input_files(path)

    def wait_for(self, pattern: str) -> None:
        self.page.locator('#status').get_by_text(re.compile(pattern)).wait_for()

    def press(self, name: str) -> None:
        self.page.get_by_role('button', name=name, exact=True).click()

    def editor_image(self) -> np.ndarray:
        data = self.page.locator('#editor canvas').first.screenshot()
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    @contextmanager
    def editor_changes(self) -> Iterator[None]:
        """What happens in the block shows in the editor when it ends."""
        before = self.editor_image() if self.page.locator('#editor canvas').count() else None
        yield
        last = []

        def settled() -> bool:
            last.append(self.editor_image() if self.page.locator('#editor canvas').count() else None)
            return (
                len(last) > 1
                and last[-1] is not None
                and last[-1].std() > 10
                and np.array_equal(last[-1], last[-2])
                and not np.array_equal(last[-1], before)
            )

        until(settled)

    def stroke(self, *points: tuple[int, int]) -> None:
        """The frame lies in the middle of the canvas, at the scale that the editor shows as a percentage."""
        scale = int(re.search(r'([0-9]+)%', self.page.locator('#editor').inner_text())[1]) / 100
        canvas = self.page.locator('#editor canvas').first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        path = [
            (
                box['x'] + box['width'] / 2 + scale * (x + 0.5 - self.size[0] / 2),
                box['y'] + box['height'] / 2 + scale * (y + 0.5 - self.size[1] / 2),
            )
            for x, y in points
        ]
        self.page.mouse.move(*path[0])
        self.page.mouse.down()
        for position in path[1:]:
            self.page.mouse.move(*position)
        self.page.mouse.up()

    def tool(self, name: str) -> None:
        self.page.locator('#editor').get_by_role('button', name=name, exact=True).click()

    def go_to(self, frame: int) -> None:
        with self.editor_changes():
            number = self.page.locator('#frame input[type=number]')
            number.fill(str(frame))
            number.press('Enter')
            self.page.locator('#preview').get_by_text(f'frame {frame}', exact=True).wait_for()

    def import_masks(self, *paths: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.press('Import masks')
        chooser.value.set_files(paths)
        self.wait_for('Imported')

    def stopped(self) -> int:
        """Wait until a propagation has stopped, and return the number of masks."""
        self.wait_for('Stopped')
        return int(re.search('Frames with a mask: ([0-9]+)', self.page.locator('#status').inner_text())[1])

    def frame(self) -> int:
        return int(self.page.locator('#frame input[type=number]').input_value())

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def bar(self) -> str:
        """The kinds of the frames, a letter each: painted, unsure, propagated (-), none (.)."""
        spans = self.page.locator('#bar .frames span').evaluate_all(
            'all => all.map(e => [e.className, e.style.flexGrow])'
        )
        letters = {'painted': 'P', 'unsure': '-', 'propagated': '-', 'none': '.'}
        return ''.join(letters[kind] * int(count) for kind, count in spans)

    def download(self, button: str, suffix: str, folder: Path) -> Path:
        self.press(button)
        with self.page.expect_download() as download:
            self.page.locator(f'#files a[download$="{suffix}"]').click()
        path = folder / f'{len(list(folder.iterdir()))}{suffix}'
        download.value.save_as(path)
        return path


@pytest.fixture
def visit(browser, server) -> Iterator[Callable[..., Visitor]]:
    """Opens tabs, in a browser that reaches nothing but the server, and notes what the page asked for elsewhere."""
    elsewhere, failures = [], []

    def note(request) -> None:
        if not request.url.startswith((server.url, 'data:', 'blob:')):
            elsewhere.append(request.url)

    context = browser.new_context(viewport={'width': 800, 'height': 900}, accept_downloads=True)
    context.on('request', note)

    def visit(**options) -> Visitor:
        page = context.new_page()
        page.on('pageerror', lambda error: failures.append(error))
        page.goto(server.url)
        return Visitor(page, **options)

    yield visit
    context.close()
    assert not elsewhere
    assert not failures
    until(lambda: not server.clips())  # what the tabs left behind is deleted


@pytest.fixture(scope='module')
def clip(tmp_path_factory) -> Path:
    """8 frames of the black swan, small, in a zip."""
    return zip_of_frames(tmp_path_factory.mktemp('clip') / 'swan.zip', 8, (W, H))


def read_masks(path: Path, folder: Path) -> list[np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return [read_mask(mask) for mask in list_frames(folder)]


@needs_gradio
def test_paint_propagate_correct_download(visit, clip, tmp_path):
    downloads = tmp_path / 'downloads'
    downloads.mkdir()
    visitor = visit()
    visitor.press('Forwards ▶')
    visitor.page.get_by_text('Upload a clip first.').wait_for()
    with visitor.editor_changes():
        visitor.upload(clip)
        visitor.wait_for(f'8 frames, {W} x {H}')
    visitor.press('Forwards ▶')
    visitor.page.get_by_text('Nothing is painted yet.').wait_for()

    visitor.stroke((70, 70), (110, 75))
    visitor.press('Forwards ▶')
    visitor.wait_for('Done.*Painted frames: 0. Frames with a mask: 8')
    first = read_masks(visitor.download('Masks (zip)', '.zip', downloads), tmp_path / 'first')
    assert len(first) == 8
    assert set(np.unique(first[0])) == {0, 1}
    assert first[0][70, 70] == first[0][75, 110] == 1
    assert first[0][20, 20] == first[0][100, 180] == 0

    visitor.go_to(5)
    with visitor.editor_changes():
        visitor.press('Add object')
        visitor.page.locator('#editor button[title=Color][style*="rgb(0, 128, 0)"]').wait_for()
        visitor.stroke((20, 60), (190, 60))
    with visitor.editor_changes():
        visitor.tool('Erase')
        visitor.stroke((100, 30), (100, 90))
    visitor.press('Forwards ▶')
    visitor.wait_for('Done.*Painted frames: 0, 5. Frames with a mask: 8')
    second = read_masks(visitor.download('Masks (zip)', '.zip', downloads), tmp_path / 'second')
    assert all(np.array_equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))
    assert (second[5][60, [22, 60, 140, 188]] == 2).all()
    assert (second[5][[32, 60, 88], 100] == 0).all()
    untouched = np.ones_like(second[5], bool)
    untouched[50:70] = False
    untouched[:, 90:110] = False
    assert np.array_equal(second[5][untouched], first[5][untouched])
    assert set(np.unique(second)) == {0, 1, 2}

    # The same as a session without a browser.
    imported = import_clip(clip, tmp_path / 'session', max_seconds=9, max_bytes=10**7)
    session = Session(make_small_network(), imported, tmp_path / 'session')
    session.paint(0, second[0])
    session.paint(5, second[5])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for reached in session.propagate(0):
        assert (reached.labels != second[reached.frame]).mean() < 1e-3
    torch.set_num_threads(threads)

    visitor.press('Adapt to this video')
    visitor.wait_for('Adapted. .*The network is adapted to this video.')
    visitor.press('Original network')
    visitor.wait_for(r'^Done\. .*Frames with a mask: 8\.$')

    least_sure = visitor.page.locator('#doubtful label').first
    frame = int(re.search('frame ([0-9]+)', least_sure.inner_text())[1])
    assert frame not in (0, 5)
    least_sure.click()
    visitor.page.locator('#preview').get_by_text(f'frame {frame}', exact=True).wait_for()
    assert visitor.page.locator('#frame input[type=number]').input_value() == str(frame)

    if importlib.util.find_spec('av'):
        from inference.video_file import VideoReader

        with VideoReader(visitor.download('Overlay (video)', '.mp4', downloads)) as video:
            assert (video.width, video.height, len(list(video))) == (W, H, 8)


@needs_gradio
def test_a_frame_that_was_shown_during_the_propagation(small_network, first_mask, tmp_path):
    """Of a page without a browser: a frame is shown before it has a mask, and kept afterwards."""
    import gradio

    from scripts.web_page import build

    nothing = gradio.skip()
    tabs = Tabs(small_network, tmp_path, max_seconds=9, max_bytes=10**7, adapting=adaptation(small_network))
    session = Session(small_network, Clip.of_images(FRAMES[:4]), tmp_path / 'clip')
    tab = tabs.tabs['key'] = Tab(session, 'clip')
    call = {event.name: event.fn for event in build(tabs).fns.values()}
    request = type('Request', (), {'session_hash': 'key'})
    session.paint(0, first_mask.numpy())
    tab.show(0)
    updates = call['forward'](None, False, 1, request)
    next(updates)
    call['show'](2, request)
    assert not tab.shown.any()
    list(updates)
    assert not tab.shown.any()
    propagated = session.labels(2)
    assert propagated.any()
    assert call['refresh']({'layers': []}, request) == nothing  # a stroke is on it
    assert not tab.shown.any()
    call['keep'](None, request)
    assert np.array_equal(session.labels(2), propagated)
    assert session.painted.keys() == {0, 2}
    tab.shown = np.zeros_like(propagated)
    assert call['refresh'](None, request) != nothing
    assert np.array_equal(tab.shown, propagated)
    assert call['refresh'](None, request) == nothing
    assert call['refresh'](None, type('Request', (), {'session_hash': 'without a clip'})) == nothing

    # The frame from which a propagation begins may be painted on meanwhile, too.
    session.forget(2)
    call['show_again'](request)
    updates = list(call['forward'](None, False, 2, request))
    assert 'editor' not in {element.elem_id for update in updates for element in update}
    assert not tab.shown.any()
    assert call['refresh'](None, request) != nothing
    assert np.array_equal(tab.shown, propagated)


@pytest.fixture
def tab(small_network, first_mask, tmp_path) -> Tab:
    tab = Tab(Session(small_network, Clip.of_images(FRAMES[:4]), tmp_path / 'clip'), 'clip')
    tab.session.paint(0, first_mask.numpy())
    tab.show(0)
    return tab


@pytest.fixture
def meanwhile(tab, monkeypatch) -> Iterator[Callable[[str], list[Future]]]:
    """At the end of the next call of a function, let another handler show frame 1. Its result will be in the list."""
    with ThreadPoolExecutor(1) as pool:

        def prepare(name: str) -> list[Future]:
            function, started = resolve_name(name), []

            def call(*args, **options):
                found = function(*args, **options)
                if not started:
                    started.append(pool.submit(tab.show, 1))
                    wait(started, timeout=0.1)
                return found

            monkeypatch.setattr(name, call)
            return started

        yield prepare


def test_two_handlers_that_show_frames_at_once(tab, meanwhile):
    other = meanwhile('PIL.Image.Image.save')
    for frame, shown in ((0, tab.show(0)), (1, other[0].result())):
        assert np.array_equal(read_image(shown['background']), tab.session.read_image(frame))
        layer = np.asarray(Image.open(shown['layers'][0]))
        assert np.array_equal(layer, layer_of(tab.session.labels(frame)))
    assert tab.frame == 1


def test_a_mask_that_is_kept_while_another_frame_is_shown(tab, meanwhile):
    layer = layer_of(np.roll(tab.shown, 9, 0))
    other = meanwhile('scripts.web_tabs.labels_of')
    tab.keep({'background': tab.session.read_image(0), 'layers': [layer]})
    other[0].result()
    assert tab.session.painted.keys() == {0}
    assert not tab.shown.any()
    assert tab.frame == 1


@pytest.fixture(scope='module')
def swan_mask(tmp_path_factory) -> Path:
    """That of the first frame, black and white."""
    mask = read_mask(list_frames(SWAN / 'Annotations')[0])
    path = tmp_path_factory.mktemp('mask') / 'swan.png'
    write_binary_mask(path, cv2.resize(mask, (W, H), interpolation=cv2.INTER_NEAREST))
    return path


@needs_gradio
def test_import_both_ways_correct_and_go_on_in_another_tab(visit, clip, swan_mask, tmp_path):
    downloads = tmp_path / 'downloads'
    downloads.mkdir()
    visitor = visit()
    visitor.upload(clip)
    visitor.wait_for('8 frames')
    visitor.go_to(3)
    with visitor.editor_changes():
        visitor.import_masks(swan_mask)
    visitor.wait_for('Imported the mask of frame 3. .*Painted frames: 3. Frames with a mask: 1')
    visitor.press('◀ Both ways ▶')
    visitor.wait_for('Done. .*Frames with a mask: 8')
    assert visitor.bar() == '---P----'
    first = read_masks(visitor.download('Masks (zip)', '.zip', downloads), tmp_path / 'first')

    visitor.go_to(6)  # a second object on a later frame: known on both sides of it
    with visitor.editor_changes():
        visitor.press('Add object')
        visitor.page.locator('#editor button[title=Color][style*="rgb(0, 128, 0)"]').wait_for()
        visitor.stroke((20, 20), (60, 24))
    visitor.page.locator('#name input, #name textarea').fill('a <b>leaf</b>')
    visitor.keys('Enter')
    visitor.page.locator('#object').get_by_text('2 a <b>leaf</b>', exact=True).wait_for()
    visitor.page.locator('#to_painted input').check()
    visitor.press('◀ Both ways ▶')
    visitor.wait_for('Done. .*Painted frames: 3, 6. Frames with a mask: 8')
    assert visitor.bar() == '---P--P-'
    work = visitor.download('Masks (zip)', '.zip', downloads)
    second = read_masks(work, tmp_path / 'second')
    assert (second[6][20:24, 22:58] == 2).any()
    changed = [bool((a != b).any()) for a, b in zip(first, second, strict=True)]
    assert changed[:4] == [False] * 4  # beyond the painted frame before
    assert all(changed[6:])
    assert any(changed[4:6])

    visitor.page.locator('#undo').click()  # of the propagation, then of the correction
    visitor.wait_for('Undone: propagating from frame 6.')
    with visitor.editor_changes():
        visitor.page.locator('#undo').click()
        visitor.wait_for('Undone: the mask of frame 6. .*Painted frames: 3. ')
    visitor.page.close()

    other = visit()
    other.upload(clip)
    other.wait_for('8 frames')
    with other.editor_changes():
        other.import_masks(work)
        other.wait_for('Imported masks of the frames .*Painted frames: 3, 6. Frames with a mask: 8')
    assert other.bar() == '---P--P-'
    other.page.locator('#object').get_by_text('2 a <b>leaf</b>', exact=True).wait_for()
    again = other.download('Masks (zip)', '.zip', downloads)
    assert again.read_bytes() == work.read_bytes()

    other.page.locator('#object').get_by_text('2 a <b>leaf</b>', exact=True).click()
    other.press('Remove object')
    other.wait_for('Removed object 2')
    assert other.page.locator('#object label').count() == 1
    third = read_masks(other.download('Masks (zip)', '.zip', downloads), tmp_path / 'third')
    assert set(np.unique(third)) == {0, 1}

    box = other.page.locator('#bar .frames').bounding_box()
    other.page.mouse.click(box['x'] + box['width'] * 5.5 / 8, box['y'] + 5)
    other.page.locator('#preview').get_by_text('frame 5', exact=True).wait_for()
    assert other.frame() == 5


@needs_gradio
def test_twenty_steps_by_keyboard_alone(visit, clip, swan_mask, tmp_path):
    """After the clip and a mask came in."""
    visitor = visit()
    visitor.upload(clip)
    visitor.wait_for('8 frames')
    visitor.import_masks(swan_mask)
    brush = visitor.page.locator('#brush input[type=number]')
    radius = int(brush.input_value())
    chosen = visitor.page.locator('#object input:checked')

    def at(frame: int) -> None:
        visitor.page.locator('#preview').get_by_text(f'frame {frame}', exact=True).wait_for()
        assert visitor.frame() == frame

    visitor.keys('ArrowRight', 'ArrowRight', 'ArrowRight')  # 1, 2, 3: next frame
    at(3)
    visitor.keys('ArrowLeft')  # 4: previous frame
    at(2)
    visitor.keys('Home')  # 5: first frame
    at(0)
    visitor.keys('Shift+ArrowRight')  # 6: propagate forwards
    visitor.wait_for('Done. .*Painted frames: 0. Frames with a mask: 8')
    visitor.keys('z')  # 7: undo the propagation
    visitor.wait_for('Undone: propagating from frame 0. .*Frames with a mask: 1.')
    visitor.keys('a')  # 8: another object
    until(lambda: visitor.page.locator('#object label').count() == 2)
    assert chosen.input_value() == '2'
    visitor.keys('n')  # 9: next object, the first one again
    until(lambda: chosen.input_value() == '1')
    visitor.keys(']', ']')  # 10, 11: a larger brush
    until(lambda: int(brush.input_value()) == radius + 2)
    visitor.keys('[')  # 12: a smaller one
    until(lambda: int(brush.input_value()) == radius + 1)
    visitor.keys('b')  # 13: both ways
    visitor.wait_for('Done. .*Frames with a mask: 8')
    visitor.keys('End')  # 14: last frame
    at(7)
    visitor.keys('k')  # 15: keep its mask, as if it was painted
    visitor.wait_for('Painted frames: 0, 7. ')
    visitor.keys('u')  # 16: up to the next painted frame
    assert visitor.page.locator('#to_painted input').is_checked()
    visitor.keys('Shift+ArrowLeft')  # 17: backwards
    visitor.wait_for('Done. .*Painted frames: 0, 7. Frames with a mask: 8')
    assert visitor.bar() == 'P------P'
    visitor.keys('f')  # 18: forget the mask of this frame
    visitor.wait_for('Painted frames: 0. Frames with a mask: 7')
    visitor.keys('Control+z')  # 19: undo that
    visitor.wait_for('Undone: forgetting frame 7. .*Painted frames: 0, 7. ')
    visitor.keys('m')  # 20: the masks
    visitor.page.locator('#files a[download$="swan_masks.zip"]').wait_for()


@needs_gradio
def test_a_stroke_is_undone_before_what_was_kept(visit, clip):
    visitor = visit()
    with visitor.editor_changes():
        visitor.upload(clip)
        visitor.wait_for('8 frames')
    visitor.stroke((70, 70), (110, 75))
    visitor.keys('k')
    visitor.wait_for('Painted frames: 0. ')
    visitor.go_to(1)
    with visitor.editor_changes():
        visitor.stroke((70, 30), (110, 35))
    with visitor.editor_changes():
        visitor.keys('z')
    visitor.wait_for('Painted frames: 0. ')
    visitor.keys('z')
    visitor.wait_for('Undone: the mask of frame 0. .*Painted frames: none')


@needs_gradio
def test_masks_that_are_refused(visit, clip, tmp_path):
    visitor = visit()
    visitor.upload(clip)
    visitor.wait_for('8 frames')
    Image.new('L', (W, H), 7).save(tmp_path / '<b>x.png')
    write_mask(tmp_path / 'narrow.png', np.ones((H, 20), np.uint8))
    with visitor.page.expect_file_chooser() as chooser:
        visitor.press('Import masks')
    chooser.value.set_files(tmp_path / 'narrow.png')
    visitor.page.get_by_text('narrow.png: expected a mask of its image').wait_for()
    visitor.wait_for('Painted frames: none')
    visitor.import_masks(tmp_path / '<b>x.png')
    visitor.wait_for('Imported the mask of frame 0')


@needs_gradio
def test_tabs_do_not_mix_and_can_stop(visit, clip, server, tmp_path):
    """The long clip takes minutes: a browser that gets little of a busy machine may press Stop long after that."""
    one, other = visit(), visit(size=(384, 288))
    one.upload(clip)
    one.wait_for(f'8 frames, {W} x {H}')
    with other.editor_changes():
        other.upload(zip_of_frames(tmp_path / 'long.zip', LONG, (384, 288), detail=(32, 24)))
        other.wait_for(f'long: {LONG} frames, 384 x 288')
    assert len(server.clips()) == 2
    other.stroke((120, 120), (240, 150))
    other.page.evaluate("['forward', 'stop'].forEach(id => document.getElementById(id).click())")
    assert 1 <= other.stopped() < LONG
    other.press('Forwards ▶')
    other.wait_for('Propagating')
    other.press('Stop')
    assert 1 < other.stopped() < LONG

    one.page.bring_to_front()  # a browser takes its time to draw the others
    one.go_to(3)
    assert one.page.locator('#preview img').evaluate('image => [image.naturalWidth, image.naturalHeight]') == [W, H]
    one.wait_for(f'swan: 8 frames, {W} x {H}. Painted frames: none')

    other.page.bring_to_front()
    other.press('Forwards ▶')  # and it goes away before that ends
    other.wait_for('Propagating')
    other.page.close()
    until(lambda: len(server.clips()) == 1)
    one.page.bring_to_front()
    one.go_to(2)


@needs_gradio
def test_uploads_that_are_refused(visit, tmp_path):
    visitor = visit()
    (tmp_path / 'text.zip').write_text('no zip')
    visitor.upload(tmp_path / 'text.zip')
    visitor.page.get_by_text('expected a zip of images').wait_for()
    (tmp_path / 'large.zip').write_bytes(bytes(9 * 10**6))
    visitor.upload(tmp_path / 'large.zip')
    visitor.page.get_by_text(re.compile('exceed', re.IGNORECASE)).first.wait_for()


@pytest.mark.skipif('STCN_SCREENSHOT' not in os.environ, reason='STCN_SCREENSHOT=docs/web.png makes a new screenshot')
def test_screenshot(browser, tmp_path):
    """The bundled clip at full size with the shipped weights, or those that STCN_SCREENSHOT_MODEL names."""
    model = ['--model', os.environ['STCN_SCREENSHOT_MODEL']] if 'STCN_SCREENSHOT_MODEL' in os.environ else []
    with zipfile.ZipFile(tmp_path / 'blackswan.zip', 'w') as archive:
        for frame in list_frames(SWAN / 'JPEGImages'):
            archive.write(frame, frame.name)
    mask = read_mask(list_frames(SWAN / 'Annotations')[0])
    server = Server(tmp_path, *model)
    try:
        page = browser.new_page(viewport={'width': 1200, 'height': 1000})
        page.goto(server.url)
        visitor = Visitor(page, size=mask.shape[::-1])
        with visitor.editor_changes():
            visitor.upload(tmp_path / 'blackswan.zip')
            visitor.wait_for('50 frames')
        page.set_default_timeout(600_000)
        truth = list_frames(SWAN / 'truth' / 'Annotations')
        for number in (10, 34):
            write_binary_mask(tmp_path / truth[number].name, read_mask(truth[number]))
        visitor.import_masks(*(tmp_path / truth[number].name for number in (10, 34)))
        page.locator('#name input, #name textarea').fill('swan')
        visitor.keys('Enter')
        visitor.press('◀ Both ways ▶')
        visitor.wait_for('Done.*Frames with a mask: 50')
        with visitor.editor_changes():
            page.locator('#doubtful label').first.click()
        page.screenshot(path=tmp_path / 'page.png')
        picture = Image.open(tmp_path / 'page.png').convert('RGB')
        picture.quantize(96).save(os.environ['STCN_SCREENSHOT'], optimize=True)
    finally:
        server.stop()
