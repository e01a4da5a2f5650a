"""What the elements of the web page do."""

import base64
import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import gradio as gr
import numpy as np

from dataset.io import PALETTE, DataError
from inference.session import Session
from inference.stream import TooLittleMemoryError
from scripts.web_tabs import OBJECTS, Tab, Tabs
from util.errors import UserError

PREVIEW_SECONDS = 0.1  # between two frames of the preview, so that a fast network does not flood the browser


@contextmanager
def told() -> Iterator[None]:
    """What the user can mend becomes a message on the page; what follows the block then changes nothing."""
    try:
        yield
    except TooLittleMemoryError as error:
        gr.Warning(f'{error}. The masks up to here are kept. These are flags of scripts/web.py; so is --device cpu.')
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


def picture(image: np.ndarray, caption: str) -> str:
    """The image itself as HTML, without a file."""
    coded = cv2.imencode('.jpg', image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
    data = base64.b64encode(coded.tobytes()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def suggestions(tab: Tab) -> dict:
    """The frames that are the least sure, to choose from."""
    frames = tab.session.least_sure()
    return gr.update(
        choices=[(f'frame {frame} ({tab.session.uncertainty[frame]:.3f})', frame) for frame in frames], value=None
    )


@dataclass(frozen=True)
class Elements:
    """The elements of the page that change."""

    file: gr.File
    frame: gr.Slider
    label: gr.Radio
    editor: gr.ImageEditor
    status: gr.Markdown
    preview: gr.HTML
    doubtful: gr.Radio
    files: gr.File


class Handlers:
    """What happens to the tab that a request comes from. Each returns what changes on the page, by element."""

    def __init__(self, tabs: Tabs, elements: Elements):
        self.tabs = tabs
        self.elements = elements

    def load(self, upload: str, request: gr.Request) -> dict:
        """Open an uploaded clip in place of the one that is there."""
        with told():
            tab = self.tabs.open(request.session_hash, upload)
            return {
                self.elements.file: None,
                self.elements.files: None,
                self.elements.frame: gr.update(maximum=len(tab.session) - 1, value=0, interactive=True),
                self.elements.label: selector(tab),
                self.elements.editor: gr.ImageEditor(tab.show(0), **tools(1, tab.session.shape)),
                self.elements.status: tab.status(),
                self.elements.preview: '',
                self.elements.doubtful: suggestions(tab),
            }
        return {self.elements.file: None}

    def show(self, number: float, request: gr.Request) -> dict:
        """Go to a frame."""
        with told():
            tab = self.tabs[request.session_hash]
            if int(number) != tab.frame:
                return {
                    self.elements.editor: tab.show(int(number)),
                    self.elements.preview: picture(tab.session.overlay(tab.frame), f'frame {tab.frame}'),
                }
        return gr.skip()

    def show_again(self, request: gr.Request) -> dict:
        """What was painted is gone: the frame as it is."""
        with told():
            tab = self.tabs[request.session_hash]
            return {self.elements.editor: tab.show(tab.frame)}
        return gr.skip()

    def choose(self, chosen: int, request: gr.Request) -> gr.ImageEditor | dict:
        """Paint another object."""
        with told():
            return gr.ImageEditor(**tools(chosen, self.tabs[request.session_hash].session.shape))
        return gr.skip()

    def add_object(self, request: gr.Request) -> dict:
        """One more object to paint."""
        with told():
            tab = self.tabs[request.session_hash]
            if tab.objects == len(OBJECTS):
                raise DataError(f'There can be {tab.objects} objects.')
            tab.objects += 1
            return {
                self.elements.label: selector(tab),
                self.elements.editor: gr.ImageEditor(**tools(tab.objects, tab.session.shape)),
            }
        return gr.skip()

    def keep(self, drawn: dict, request: gr.Request) -> dict:
        """What is painted is the mask of its frame."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.keep(drawn, always=True)
            return {
                self.elements.status: tab.status(),
                self.elements.doubtful: suggestions(tab),
                self.elements.files: None,
            }
        return gr.skip()

    def forget(self, request: gr.Request) -> dict:
        """Nothing is painted on this frame any more."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.session.forget(tab.frame)
            return {
                self.elements.editor: tab.show(tab.frame),
                self.elements.status: tab.status(),
                self.elements.files: None,
            }
        return gr.skip()

    def propagate(self, drawn: dict, request: gr.Request) -> Iterator[dict]:
        """From this frame to the end, with previews on the way."""
        with told():
            tab = self.tabs[request.session_hash]
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
                        yield {self.elements.status: f'Looking at the frames before again: {reached.frame}'}
                        continue
                    image = tab.session.overlay(reached.frame, reached.labels)
                    caption = f'frame {reached.frame} of {len(tab.session) - 1}, uncertainty {reached.uncertainty:.3f}'
                    yield {
                        self.elements.preview: picture(image, caption),
                        self.elements.status: f'Propagating: {caption}',
                    }
                ended = 'Stopped' if tab.stop.is_set() else 'Done'
            ending = {
                self.elements.status: f'{ended}. {tab.status()}',
                self.elements.doubtful: suggestions(tab),
                self.elements.files: None,
            }
            if tab.frame == began and began not in tab.session.painted:
                ending[self.elements.editor] = tab.show(began)
            yield ending
            return
        yield gr.skip()

    def stop(self, request: gr.Request) -> None:
        """End the propagation."""
        with told():
            self.tabs[request.session_hash].stop.set()

    def _written(self, request: gr.Request, ending: str, write: Callable) -> str | dict:
        """The file of the tab's results that ``write(session, path)`` makes."""
        with told():
            tab = self.tabs[request.session_hash]
            path = tab.session.folder / f'{tab.name}_{ending}'
            write(tab.session, path)
            return str(path)
        return gr.skip()

    def masks(self, request: gr.Request) -> str | dict:
        """A zip of the masks."""
        return self._written(request, 'masks.zip', Session.write_masks)

    def video(self, request: gr.Request) -> str | dict:
        """A video with the masks on top."""
        return self._written(request, 'overlay.mp4', Session.write_overlay)

    def leave(self, request: gr.Request) -> None:
        """The tab is closed."""
        self.tabs.drop(request.session_hash)
