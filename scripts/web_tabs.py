"""The clips of the web page's tabs: what was painted on them, and where their files are."""

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.io import DataError, some
from inference import InferenceConfig
from inference.clip import LimitError, import_clip
from inference.session import Session
from inference.session_masks import import_masks
from model import Network
from scripts.web_paint import labels_of, layer_of
from util.files import atomic_path


class Tab:
    """The clip of one browser tab: its session, the frame that is being painted, and the mask it was painted on."""

    def __init__(self, session: Session, name: str):
        self.session = session
        self.name = name
        self.frame = 0
        self.shown = session.labels(0)  # the mask that the editor began with
        self.brush = max(2, min(session.shape) // 40)  # its radius
        self._label = 1
        self.brushes = {1}  # the objects that were painted with since then
        self.stop = threading.Event()
        self.busy = threading.Lock()  # while frames are propagated
        self.closed = False

    @property
    def label(self) -> int:
        """The object that is painted. There is always one."""
        if not self.session.names:
            self.session.names[1] = ''
        if self._label not in self.session.names:
            self.choose(min(self.session.names))
        return self._label

    def choose(self, label: int) -> None:
        """Paint another object."""
        self._label = label
        self.brushes.add(label)

    def next_object(self) -> None:
        """Paint the object with the next label; after the last one the first."""
        labels = sorted(self.session.names)
        self.choose(next((label for label in labels if label > self.label), labels[0]))

    def show(self, frame: int) -> dict:
        """A frame for the editor, its present mask as the layer to paint on.

        As files, which gradio copies: images it would write, again where they are equal, while the browser reads them.
        """
        self.frame, self.shown, self.brushes = frame, self.session.labels(frame), {self.label}
        files = {}
        for name, image in (('frame', self.session.read_image(frame)), ('layer', layer_of(self.shown))):
            files[name] = str(self.session.folder / f'{name}.png')
            with atomic_path(files[name]) as temporary:
                Image.fromarray(image).save(temporary, format='PNG', compress_level=1)
        return {'background': files['frame'], 'layers': [files['layer']], 'composite': None}

    def keep(self, editor: dict | None, *, always: bool = False) -> bool:
        """Make what the editor holds the mask of its frame, if that is a change (or ``always``).

        Args:
            editor: ``None`` where nothing was painted since the frame was shown.

        Returns:
            Whether the mask was kept.

        Raises:
            DataError: the editor does not hold this frame, or nothing is painted.
        """
        labels = self.shown
        if editor is not None:
            background = editor['background']
            image = self.session.read_image(self.frame)
            if background is None or not editor['layers'] or not np.array_equal(background[..., :3], image):
                raise DataError(f'The editor does not show frame {self.frame} yet. Try again, or choose it anew.')
            labels = labels_of(editor['layers'][0], self.shown, self.brushes)
        if not always and np.array_equal(labels, self.shown):
            return False
        self.session.paint(self.frame, labels)
        self.shown = labels
        return True

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
        masks = len(session.masked())
        painted = some(sorted(session.painted)) or 'none'
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
        networks: Network | Sequence[Network],
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

    def import_masks(self, key: str, uploads: Sequence[str | Path]) -> list[int]:
        """Give a tab masks that were made elsewhere; the frames that they are for. Raises ``DataError``."""
        tab = self[key]
        with tab.alone():
            return import_masks(tab.session, [Path(path) for path in uploads], tab.frame, max_bytes=self.max_bytes)

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
