"""A page in the browser, on this computer only: paint objects on a clip, propagate, correct, take the masks along."""

import argparse
import base64
import html
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.io import PALETTE, DataError
from inference.config import InferenceConfig
from scripts.flags import add_inference_flags, inference_config, load_networks, parse_flags
from util.cli import HelpFormatter, positive, run_main
from util.errors import MissingPackageError, UserError
from util.files import atomic_path
from util.offline import stay_local

log = logging.getLogger(__name__)

HOSTS = ('127.0.0.1', 'localhost')
# Corners of the RGB cube: no mixture of two of these colours, as an anti-aliased brush leaves, is near a third.
OBJECTS = ('red', 'green', 'olive', 'blue', 'purple', 'teal', 'grey')
TOLERANCE = 8  # of a colour, in each channel
UNUSED = ('/process_recording', '/dev/reload')  # of what gradio serves; the first one starts FFmpeg
SHOWN_ALPHA = 128  # masks that are there already let the frame shine through; new strokes are opaque
PREVIEW_SECONDS = 0.1  # between two frames of the preview, so that a fast network does not flood the browser
HELP = """**1.** Upload a clip. **2.** Go to a frame, choose an object and paint it; the eraser makes background.
**3.** Propagate. **4.** Go to a frame where the mask is wrong, correct it and propagate from there: the frames before
keep their masks. A painting that is neither kept nor propagated is gone when you go to another frame. What you
paint is complete: an object that you leave out is not there. Objects begin on the frame they are painted on."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add('--port', type=positive, default=7860, help='of the page, http://127.0.0.1:PORT')
    add('--max_seconds', type=positive, default=60, help='longest clip')
    add(
        '--max_megabytes',
        type=positive,
        default=200,
        help='largest upload; its frames may take ten times that on disk',
    )
    add_inference_flags(parser, model=None, size=[480])
    return parse_flags(parser)


def main() -> int:
    args = parse()
    check_port(args.port)
    # Before gradio is imported: it reads its settings from the environment, and some would open it to the network.
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]
    os.environ |= {
        'GRADIO_ANALYTICS_ENABLED': 'False',
        'HF_HUB_OFFLINE': '1',
        'NO_PROXY': ','.join([*HOSTS, os.environ.get('NO_PROXY', '')]),
    }
    stay_local()  # gradio would fetch the address that a request gives in place of a file
    # Ended by a signal, it cleans up as well. The last one is that of a closed terminal, which nohup ignores.
    for name in ('SIGTERM', 'SIGHUP'):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix='stcn_web_', ignore_cleanup_errors=True) as root:
        os.environ['GRADIO_TEMP_DIR'] = str(Path(root, 'gradio'))
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f'the page needs {error.name}: pip install -r requirements-extras.txt'
            ) from error
        networks = load_networks(args)
        tabs = Tabs(
            networks,
            Path(root, 'clips'),
            inference_config(args, networks),
            max_seconds=args.max_seconds,
            max_bytes=args.max_megabytes * 10**6,
            object_chunk=args.object_chunk,
        )
        try:
            serve(tabs, port=args.port)
        except KeyboardInterrupt:
            log.info('stopped; the clips and their masks are deleted')
        finally:
            tabs.close()
    return 0


class Tab:
    """The clip of one browser tab: its session, the frame that is being painted, and the mask it was painted on."""

    def __init__(self, session, name: str):
        self.session = session
        self.name = name
        self.objects = 1
        self.frame = 0
        self.shown = session.labels(0)  # the mask that the editor began with
        self.stop = threading.Event()
        self.busy = threading.Lock()  # while frames are propagated
        self.closed = False

    def show(self, frame: int) -> dict:
        """A frame for the editor, its present mask as the layer to paint on.

        As files, which gradio copies: images it would write, again where they are equal, while the browser reads them.
        """
        self.frame, self.shown = frame, self.session.labels(frame)
        files = {}
        for name, image in (('frame', self.session.read_image(frame)), ('layer', layer_of(self.shown))):
            files[name] = str(self.session.folder / f'{name}.png')
            with atomic_path(files[name]) as temporary:
                Image.fromarray(image).save(temporary, format='PNG', compress_level=1)
        return {'background': files['frame'], 'layers': [files['layer']], 'composite': None}

    def keep(self, editor: dict | None, *, always: bool = False) -> None:
        """Make what the editor holds the mask of its frame, if that is a change (or ``always``).

        Raises:
            DataError: the editor does not hold this frame, or nothing is painted.
        """
        image = self.session.read_image(self.frame)
        background = None if editor is None else editor['background']
        if background is None or not editor['layers'] or not np.array_equal(background[..., :3], image):
            raise DataError(f'The editor does not show frame {self.frame} yet. Try again, or choose it anew.')
        labels = labels_of(editor['layers'][0])
        if always or not np.array_equal(labels, self.shown):
            self.session.paint(self.frame, labels)
            self.shown = labels

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing is propagated meanwhile.

        Raises:
            DataError: it is being propagated.
        """
        if not self.busy.acquire(blocking=False):
            raise DataError('The clip is being propagated. Stop that first, or wait.')
        try:
            yield
        finally:
            self.busy.release()
            if self.closed:  # and what was written since then made the folder anew
                self.session.close()

    def status(self) -> str:
        session = self.session
        masks = sum(map(session.has_mask, range(len(session))))
        painted = ', '.join(map(str, sorted(session.painted))) or 'none'
        height, width = session.shape
        name = self.name.replace('`', '')  # as code: it is the user's, and would otherwise be Markdown
        return (
            f'`{name}`: {len(session)} frames, {width} x {height}. Painted frames: {painted}. '
            f'Frames with a mask: {masks}.'
        )

    def close(self) -> None:
        """Stop, and delete all files."""
        self.closed = True
        self.stop.set()
        # It ends with the frame that it is at. Not so where its browser is gone; then nothing goes on.
        self.busy.acquire(timeout=5)
        self.session.close()


class Tabs:
    """The clips of all browser tabs, each in a folder of its own. Networks and ``config``: as of a ``Session``."""

    def __init__(
        self,
        networks,
        folder: Path,
        config: InferenceConfig | None = None,
        *,
        max_seconds: float,
        max_bytes: int,
        object_chunk: int | None = None,
    ):
        self.networks = networks
        self.folder = folder
        self.config = config
        self.object_chunk = object_chunk
        self.max_seconds = max_seconds
        self.max_bytes = max_bytes
        self.tabs: dict[str, Tab] = {}
        self.opening: dict[str, Path] = {}  # the folder of the clip that a tab is waiting for

    def open(self, key: str, upload: str | Path) -> Tab:
        """Replace the clip of a tab by an uploaded file, which is moved. After a ``DataError`` the old one stays.

        Raises:
            DataError: the file is unusable, or the tab was closed meanwhile, or given another one.
        """
        from inference.session import LimitError, Session, import_clip

        self.folder.mkdir(exist_ok=True)
        folder = self.opening[key] = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            (folder / 'upload').mkdir()
            upload = Path(shutil.move(upload, folder / 'upload'))
            clip = import_clip(upload, folder, max_seconds=self.max_seconds, max_bytes=self.max_bytes)
            session = Session(self.networks, clip, folder, self.config, object_chunk=self.object_chunk)
            tab = Tab(session, upload.stem)
            if self.opening.get(key) != folder:
                raise DataError(f'{upload.name}: the page was closed, or another clip chosen, before it was there.')
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, LimitError):
                raise DataError(
                    f'{error}. The limits are --max_seconds and --max_megabytes of scripts/web.py'
                ) from None
            raise
        self.drop(key)
        self.tabs[key] = tab
        return tab

    def __getitem__(self, key: str) -> Tab:
        """Raises ``DataError`` where no clip is open."""
        if key not in self.tabs:
            raise DataError('Upload a clip first.')
        return self.tabs[key]

    def drop(self, key: str) -> None:
        """Close a tab and delete its files."""
        self.opening.pop(key, None)
        if tab := self.tabs.pop(key, None):
            tab.close()

    def close(self) -> None:
        for key in list(self.tabs):
            self.drop(key)


def layer_of(labels: np.ndarray) -> np.ndarray:
    """``[H, W]`` labels -> uint8 ``[H, W, 4]``: objects in their colours, half transparent; nothing elsewhere."""
    return np.dstack([PALETTE[labels], SHOWN_ALPHA * (labels > 0).astype(np.uint8)])


def labels_of(layer: np.ndarray) -> np.ndarray:
    """What was painted, uint8 ``[H, W, 4]`` -> uint8 ``[H, W]`` labels.

    Less than half of ``SHOWN_ALPHA`` is background, an object's colour is the object. Other colours are mixtures,
    where a brush or the eraser smoothed an outline: they become what the nearest pixel that is none is. So there are
    no objects but those that were painted.
    """
    import cv2  # --help must not wait for it

    empty = layer[..., 3] < SHOWN_ALPHA // 2
    labels = np.zeros(layer.shape[:2], np.uint8)
    for label in range(1, len(OBJECTS) + 1):
        difference = np.abs(layer[..., :3].astype(np.int16) - PALETTE[label])
        labels[(difference <= TOLERANCE).all(axis=-1) & ~empty] = label
    mixed = ~empty & (labels == 0)
    if mixed.all():
        return np.zeros_like(labels)
    if mixed.any():
        nearest = cv2.distanceTransformWithLabels(
            mixed.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )[1]
        label_of = np.zeros(nearest.max() + 1, np.uint8)
        label_of[nearest[~mixed]] = labels[~mixed]
        labels = label_of[nearest]
    return labels


def build(tabs: Tabs):
    """The page, a ``gradio.Blocks``."""
    import cv2
    import gradio as gr

    from inference.session import Session
    from inference.stream import TooLittleMemoryError

    @contextmanager
    def told() -> Iterator[None]:
        """What the user can mend becomes a message on the page; what follows the block then changes nothing."""
        try:
            yield
        except TooLittleMemoryError as error:
            gr.Warning(
                f'{error}. The masks up to here are kept. These are flags of scripts/web.py; so is --device cpu.'
            )
        except (UserError, OSError) as error:
            gr.Warning(html.escape(str(error).splitlines()[0]))  # there may be names of the user's files in it

    def tools(label: int, shape: tuple[int, int] = (480, 854)) -> dict:
        """Brush and eraser for an object, their radius fit for a frame of this size."""
        colour = '#{:02x}{:02x}{:02x}'.format(*PALETTE[label].tolist())
        radius = max(2, min(shape) // 40)
        return {
            'brush': gr.Brush(colors=[colour], default_color=colour, color_mode='fixed', default_size=radius),
            'eraser': gr.Eraser(default_size=radius),
        }

    def selector(tab: Tab) -> dict:
        """The objects to choose from; the last one is chosen."""
        choices = [(f'{label} {name}', label) for label, name in enumerate(OBJECTS[: tab.objects], 1)]
        return gr.update(choices=choices, value=tab.objects)

    def picture(image, caption: str) -> str:
        coded = cv2.imencode('.jpg', image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
        data = base64.b64encode(coded.tobytes()).decode()
        return (
            f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{data}">'
            f'<figcaption>{caption}</figcaption></figure>'
        )

    def suggestions(tab: Tab) -> dict:
        frames = tab.session.least_sure()
        return gr.update(
            choices=[(f'frame {frame} ({tab.session.uncertainty[frame]:.3f})', frame) for frame in frames], value=None
        )

    def load(upload: str, request: gr.Request):
        with told():
            tab = tabs.open(request.session_hash, upload)
            return {
                file: None,
                files: None,
                frame: gr.update(maximum=len(tab.session) - 1, value=0, interactive=True),
                label: selector(tab),
                editor: gr.ImageEditor(tab.show(0), **tools(1, tab.session.shape)),
                status: tab.status(),
                preview: '',
                doubtful: suggestions(tab),
            }
        return {file: None}

    def show(number: float, request: gr.Request):
        with told():
            tab = tabs[request.session_hash]
            if int(number) != tab.frame:
                return {
                    editor: tab.show(int(number)),
                    preview: picture(tab.session.overlay(tab.frame), f'frame {tab.frame}'),
                }
        return gr.skip()

    def show_again(request: gr.Request):
        with told():
            tab = tabs[request.session_hash]
            return {editor: tab.show(tab.frame)}
        return gr.skip()

    def choose(chosen: int, request: gr.Request):
        with told():
            return gr.ImageEditor(**tools(chosen, tabs[request.session_hash].session.shape))
        return gr.skip()

    def add_object(request: gr.Request):
        with told():
            tab = tabs[request.session_hash]
            if tab.objects == len(OBJECTS):
                raise DataError(f'There can be {tab.objects} objects.')
            tab.objects += 1
            return {label: selector(tab), editor: gr.ImageEditor(**tools(tab.objects, tab.session.shape))}
        return gr.skip()

    def keep(drawn: dict, request: gr.Request):
        with told():
            tab = tabs[request.session_hash]
            with tab.alone():
                tab.keep(drawn, always=True)
            return {status: tab.status(), doubtful: suggestions(tab), files: None}
        return gr.skip()

    def forget(request: gr.Request):
        with told():
            tab = tabs[request.session_hash]
            with tab.alone():
                tab.session.forget(tab.frame)
            return {editor: tab.show(tab.frame), status: tab.status(), files: None}
        return gr.skip()

    def propagate(drawn: dict, request: gr.Request):
        with told():
            tab = tabs[request.session_hash]
            with tab.alone():
                tab.keep(drawn)
                tab.stop.clear()
                began, due = tab.frame, 0.0
                for reached in tab.session.propagate(began):
                    if tab.stop.is_set():
                        break
                    if time.monotonic() < due:
                        continue
                    due = time.monotonic() + PREVIEW_SECONDS
                    if reached.labels is None:
                        yield {status: f'Looking at the frames before again: {reached.frame}'}
                        continue
                    image = tab.session.overlay(reached.frame, reached.labels)
                    caption = f'frame {reached.frame} of {len(tab.session) - 1}, uncertainty {reached.uncertainty:.3f}'
                    yield {preview: picture(image, caption), status: f'Propagating: {caption}'}
                ended = 'Stopped' if tab.stop.is_set() else 'Done'
            ending = {status: f'{ended}. {tab.status()}', doubtful: suggestions(tab), files: None}
            if tab.frame == began and began not in tab.session.painted:
                ending[editor] = tab.show(began)
            yield ending
            return
        yield gr.skip()

    def stop(request: gr.Request):
        with told():
            tabs[request.session_hash].stop.set()

    def written(request: gr.Request, ending: str, write: Callable):
        """The file of the tab's results that ``write(session, path)`` makes."""
        with told():
            tab = tabs[request.session_hash]
            path = tab.session.folder / f'{tab.name}_{ending}'
            write(tab.session, path)
            return str(path)
        return gr.skip()

    def masks(request: gr.Request):
        return written(request, 'masks.zip', Session.write_masks)

    def video(request: gr.Request):
        return written(request, 'overlay.mp4', Session.write_overlay)

    def leave(request: gr.Request):
        tabs.drop(request.session_hash)

    with gr.Blocks(title='STCN', analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as page:
        gr.Markdown(f'# Video object segmentation\n{HELP}')
        with gr.Row():
            with gr.Column(scale=3):
                frame = gr.Slider(0, 1, 0, step=1, label='Frame', interactive=False, elem_id='frame')
                with gr.Row():
                    label = gr.Radio([(f'1 {OBJECTS[0]}', 1)], value=1, label='Object', scale=4, elem_id='object')
                    add = gr.Button('Add object', size='sm', min_width=100)
                editor = gr.ImageEditor(
                    label='Paint',
                    type='numpy',
                    format='png',
                    sources=(),
                    transforms=(),
                    layers=False,
                    buttons=[],
                    height=440,
                    elem_id='editor',
                    **tools(1),
                )
                with gr.Row():
                    start = gr.Button('Propagate from here', variant='primary', size='sm', min_width=100)
                    halt = gr.Button('Stop', variant='stop', size='sm', min_width=100)
                    kept = gr.Button('Keep this mask', size='sm', min_width=100)
                    undo = gr.Button('Forget it', size='sm', min_width=100)
            with gr.Column(scale=2):
                limits = f'{tabs.max_seconds:g} s and {tabs.max_bytes / 1e6:.0f} MB'
                file = gr.File(
                    label=f'Clip: a video or a zip of images, up to {limits}',
                    file_types=['video', '.zip'],
                    height=140,
                    elem_id='file',
                )
                status = gr.Markdown('No clip yet.', elem_id='status')
                preview = gr.HTML(elem_id='preview')
                doubtful = gr.Radio([], label='Least sure: look at these next', elem_id='doubtful')
                with gr.Row():
                    take_masks = gr.Button('Masks (zip)', size='sm', min_width=100)
                    take_video = gr.Button('Overlay (video)', size='sm', min_width=100)
                files = gr.File(label='Download', interactive=False, height=110, elem_id='files')

        quiet = {'show_progress': 'hidden', 'api_visibility': 'private'}
        file.upload(load, file, [file, files, frame, label, editor, status, preview, doubtful], **quiet)
        frame.change(show, frame, [editor, preview], trigger_mode='always_last', **quiet)
        editor.clear(show_again, None, [editor], **quiet)
        label.input(choose, label, editor, **quiet)
        add.click(add_object, None, [label, editor], **quiet)
        start.click(propagate, editor, [editor, preview, status, doubtful, files], **quiet)
        halt.click(stop, None, None, **quiet)
        kept.click(keep, editor, [status, doubtful, files], **quiet)
        undo.click(forget, None, [editor, status, files], **quiet)
        doubtful.input(lambda chosen: chosen, doubtful, frame, **quiet)
        take_masks.click(masks, None, files, api_visibility='private')
        take_video.click(video, None, files, api_visibility='private')
        page.unload(leave)
    return page


class LocalOnly:
    """ASGI middleware: refuses what other web pages have a browser ask of this server, to fetch from others, and what
    the page does not need."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        from starlette.datastructures import Headers
        from starlette.responses import PlainTextResponse

        answer = self.app
        if scope['type'] == 'http':
            headers = Headers(scope=scope)
            host = headers.get('host', '')
            foreign = urlsplit(f'//{host}').hostname not in HOSTS or headers.get('origin') not in (
                None,
                f'http://{host}',
            )
            if foreign or '=http' in scope['path'] or scope['path'].rstrip('/').endswith(UNUSED):
                answer = PlainTextResponse('refused', 403)
        await answer(scope, receive, send)


def check_port(port: int) -> None:
    """Raises ``UserError`` where the page cannot be opened at a port."""
    with socket.socket() as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind((HOSTS[0], port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f'port {port}: expected a free port for the page, cannot open it ({error}); choose another --port'
            ) from error


def serve(tabs: Tabs, *, port: int) -> None:
    """Show the page until interrupted."""
    import gradio as gr
    from starlette.middleware import Middleware

    logging.getLogger('httpx').setLevel(logging.WARNING)
    page = build(tabs)
    page.queue(api_open=False)
    page.launch(
        server_name=HOSTS[0],
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
        max_file_size=tabs.max_bytes,
        allowed_paths=[],
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={'middleware': [Middleware(LocalOnly)]},
        theme=gr.themes.Default(font=('system-ui', 'sans-serif'), font_mono=('ui-monospace', 'monospace')),
        css='#preview figure {margin: 0} #preview img {width: 100%}',
    )
    log.info('open %s in a browser; Ctrl-C stops', page.local_url)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


if __name__ == '__main__':
    run_main(main)
