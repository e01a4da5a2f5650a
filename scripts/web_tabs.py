"""The clips that are open in the browser tabs of the web page."""

import itertools
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.io import DataError, some
from inference import InferenceConfig
from inference.clip import LimitError, import_clip
from inference.session import Session
from inference.session_masks import import_masks
from model import Network
from scripts.adapting import MOST_FRAMES
from scripts.web_paint import labels_of, layer_of
from training.adapt import Adapting
from util.files import atomic_path

PLACES = 8  # as many frames are given to the editor before the files of the first one are replaced


class Adaptation(NamedTuple):
    """How a tab's network is adapted to its clip."""

    begin: Callable[[Iterator[tuple[np.ndarray, np.ndarray]]], Adapting]  # gets annotated frames
    make_ready: Callable[[Network], Network]  # for inference
    seconds: float


class Tab:
    """The clip of one browser tab: its session, the frame that is being painted, and the state of the editor."""

    def __init__(self, session: Session, name: str):
        self.session = session
        self.original = session.networks  # those that are not adapted to this clip
        self.name = name
        self.frame = 0
        self.shown = session.labels(0)  # the mask of the frame when the editor got it
        self.brush = max(2, min(session.shape) // 40)  # radius of the brush in pixels
        self._label = 1
        self.brushes = {1}  # the labels of the brushes chosen since the frame was shown
        self.stopped: float = 0  # the last propagation or adaptation that is to stop; the page numbers them
        self.places = itertools.cycle(range(PLACES))  # folders for the files that the editor gets
        self.editing = threading.Lock()  # held while the editor gets a frame or its content is kept: the two may meet
        self.busy = threading.Lock()  # held while frames are propagated, the network adapts or masks are changed
        self.closed = False

    @property
    def label(self) -> int:
        """The label of the object that is painted. There is always one."""
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
        """Paint the object with the next label; after the last one comes the first."""
        labels = sorted(self.session.names)
        self.choose(next((label for label in labels if label > self.label), labels[0]))

    def show(self, frame: int) -> dict:
        """Give the editor a frame, with its present mask as the layer to paint on.

        They are passed as files, which gradio copies. If they were passed as images, gradio would write the files, and
        could write one again while the browser reads it, since equal images have the same file. Since gradio copies
        them later, perhaps after another handler has given the editor another frame, the next frames get other files.
        """
        with self.editing:
            self.frame, self.shown, self.brushes = frame, self.session.labels(frame), {self.label}
            folder = self.session.folder / 'shown' / str(next(self.places))
            files = {}
            for name, image in (('frame', self.session.read_image(frame)), ('layer', layer_of(self.shown))):
                files[name] = str(folder / f'{name}.png')
                with atomic_path(files[name]) as temporary:
                    Image.fromarray(image).save(temporary, format='PNG', compress_level=1)
        return {'background': files['frame'], 'layers': [files['layer']], 'composite': None}

    def keep(self, editor: dict | None, *, always: bool = False) -> bool:
        """Keep the mask in the editor as the painted mask of the frame, if it has changed (or ``always``).

        Args:
            editor: the content of the editor; ``None`` if nothing was painted since the frame was shown.
            always: also keep an unchanged mask.

        Returns:
            Whether the mask was kept.

        Raises:
            DataError: the editor does not hold this frame, or nothing is painted.
        """
        with self.editing:
            labels = self.shown
            if editor is not None:
                background = editor['background']
                image = self.session.read_image(self.frame)
                if background is None or not editor['layers'] or not np.array_equal(background[..., :3], image):
                    raise DataError(
                        f'The editor does not show frame {self.frame} yet. Try again, or choose the frame again.'
                    )
                labels = labels_of(editor['layers'][0], self.shown, self.brushes)
            if np.array_equal(labels, self.shown):
                if not always:
                    return False
                labels = self.session.labels(self.frame)  # a propagation may have reached the frame after it was shown
            self.session.paint(self.frame, labels)
            self.shown = labels
            return True

    def adapt(self, how: Adaptation) -> Iterator[float]:
        """Adapt the network to the painted frames. Yields the share that is done. To leave it, stop iterating.

        Raises:
            DataError: nothing is painted.
            UserError: there are several networks.
        """
        if not any(self.session.painted.values()):
            raise DataError('Nothing is painted yet. Paint an object where it is seen well.')
        adapting = how.begin(self.session.annotated_frames(MOST_FRAMES))
        yield from adapting.steps(how.seconds)
        self.session.use([how.make_ready(adapting.network)], 'adapting to this video')

    def unadapt(self) -> None:
        """Go back to the original network. Raises ``DataError`` if it is in use."""
        if self.session.networks is self.original:
            raise DataError('The network is the original one already.')
        self.session.use(self.original, 'going back to the original network')

    def stop(self, run: float) -> None:
        """Stop the propagations and adaptations up to this number."""
        self.stopped = max(self.stopped, run)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the clip from being propagated, adapted to or changed by others while the block runs.

        Raises:
            DataError: the clip is being propagated, or its network is being adapted.
        """
        if not self.busy.acquire(blocking=False):
            raise DataError('The clip is being propagated, or its network adapts. Stop that first, or wait.')
        try:
            yield
        finally:
            self.busy.release()
            if self.closed:  # the block may have written files after the folder was deleted
                self.session.close()

    def status(self) -> str:
        session = self.session
        masks = len(session.masked())
        painted = some(sorted(session.painted)) or 'none'
        height, width = session.shape
        name = self.name.replace('`', '')  # shown as code, since the user's name could contain Markdown
        return (
            f'`{name}`: {len(session)} frames, {width} x {height}. Painted frames: {painted}. '
            f'Frames with a mask: {masks}.'
            + ('' if session.networks is self.original else ' The network is adapted to this video.')
        )

    def close(self) -> None:
        """Stop a propagation, and delete all files."""
        self.closed = True
        self.stop(math.inf)
        # A propagation ends after its current frame and releases the lock. If its browser is gone, gradio no longer
        # runs it, and it never releases the lock; therefore the timeout.
        self.busy.acquire(timeout=5)
        self.session.close()


class Tabs:
    """The clips of all browser tabs, each in its own folder.

    Args:
        networks, config, object_chunk: see :class:`inference.session.Session`.
        folder: where the folders of the clips are made.
        max_seconds, max_bytes: limits of an upload; see :func:`inference.clip.import_clip`.
        adapting: how the network is adapted to a clip.
    """

    def __init__(
        self,
        networks: Network | Sequence[Network],
        folder: Path,
        config: InferenceConfig | None = None,
        *,
        max_seconds: float,
        max_bytes: int,
        adapting: Adaptation,
        object_chunk: int | None = None,
    ):
        self.adapting = adapting
        self.networks = networks
        self.folder = folder
        self.config = config
        self.object_chunk = object_chunk
        self.max_seconds = max_seconds
        self.max_bytes = max_bytes
        self.tabs: dict[str, Tab] = {}
        self.opening: dict[str, Path] = {}  # the folder of the clip that a tab is waiting for

    def open(self, key: str, upload: str | Path) -> Tab:
        """Replace the clip of a tab by an uploaded file. After a ``DataError`` the old clip stays.

        The file stays where it is, and gradio deletes it later: another tab that uploads the same file gets the same
        path, and may still have to open it. The clip has a hard link to it, which takes no room.

        Raises:
            DataError: the file cannot be used, or meanwhile the tab was closed or got another file.
        """
        self.folder.mkdir(exist_ok=True)
        folder = self.opening[key] = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            upload = _linked(Path(upload), folder / 'upload')
            clip = import_clip(upload, folder, max_seconds=self.max_seconds, max_bytes=self.max_bytes)
            session = Session(self.networks, clip, folder, self.config, object_chunk=self.object_chunk)
            tab = Tab(session, upload.stem)
            if self.opening.get(key) != folder:
                raise DataError(
                    f'{upload.name}: the page was closed, or another clip was chosen, before this one was ready.'
                )
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
        """Import masks into a tab. Returns their frames; raises ``DataError`` if the files cannot be used."""
        tab = self[key]
        with tab.alone():
            return import_masks(tab.session, [Path(path) for path in uploads], tab.frame, max_bytes=self.max_bytes)

    def __getitem__(self, key: str) -> Tab:
        """The tab with this key. Raises ``DataError`` if it has no clip."""
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


def _linked(path: Path, folder: Path) -> Path:
    """Link a file into a new folder, or copy it where the file system has no links. Returns its path there."""
    folder.mkdir()
    target = folder / path.name
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
    return target
