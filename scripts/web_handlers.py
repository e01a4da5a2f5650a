"""The handlers of the web page: what happens when its elements are used."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np

from dataset.io import some
from inference.directions import Direction
from inference.report import least_sure
from inference.session import Session
from inference.session_masks import object_name, write_masks
from scripts.web_elements import Elements, picture, tools
from scripts.web_messages import Overheard, told
from scripts.web_paint import bar, title_of
from scripts.web_tabs import Tab, Tabs

SUGGESTED = 5  # number of frames that are suggested to look at
PREVIEW_SECONDS = 0.1  # time between two previews, so that a fast network does not flood the browser


class Handlers:
    """The handlers. Each acts on the browser tab that the request comes from, and returns element -> new value."""

    def __init__(self, tabs: Tabs, elements: Elements):
        self.tabs = tabs
        self.elements = elements

    def _masks_changed(self, tab: Tab, done: str = '') -> dict:
        """Update the elements that depend on the masks of the clip."""
        sure = tab.session.sureness()
        choices = [(f'frame {frame} ({sure[frame]:.2f})', frame) for frame in least_sure(sure, SUGGESTED)]
        return {
            self.elements.status: f'{done} {tab.status()}',
            self.elements.bar: bar(tab.session, tab.frame),
            self.elements.doubtful: gr.update(choices=choices, value=None),
            self.elements.files: None,
        }

    def _tool_changed(self, tab: Tab) -> dict:
        """Update the elements for the object to paint and its brush."""
        label, names = tab.label, tab.session.names
        return {
            self.elements.label: gr.update(
                choices=[(title_of(each, name), each) for each, name in sorted(names.items())], value=label
            ),
            self.elements.name: names[label],
            self.elements.editor: gr.ImageEditor(**tools(label, tab.brush)),
        }

    def _all_changed(self, tab: Tab, done: str = '') -> dict:
        changed = self._masks_changed(tab, done) | self._tool_changed(tab)
        image = picture(tab.session.overlay(tab.frame), f'frame {tab.frame}')
        editor = gr.ImageEditor(tab.show(tab.frame), **tools(tab.label, tab.brush))
        return changed | {self.elements.editor: editor, self.elements.preview: image}

    def load(self, upload: str, request: gr.Request) -> dict:
        """Open an uploaded clip in place of the present one."""
        with told():
            tab = self.tabs.open(request.session_hash, upload)
            return self._all_changed(tab) | {
                self.elements.file: None,
                self.elements.frame: gr.update(maximum=len(tab.session) - 1, value=0, interactive=True),
                self.elements.brush: tab.brush,
                self.elements.preview: '',
            }
        return {self.elements.file: None}

    def import_masks(self, uploads: list[str], request: gr.Request) -> dict:
        """Import masks, for the frames that they are named after or for the frame that is shown."""
        with told():
            with Overheard() as overheard:
                frames = self.tabs.import_masks(request.session_hash, uploads)
            overheard.tell()
            tab = self.tabs[request.session_hash]
            if tab.frame not in frames:
                tab.frame = frames[0]
            masks = f'masks of the frames {some(frames)}' if len(frames) > 1 else f'the mask of frame {frames[0]}'
            return self._all_changed(tab, f'Imported {masks}.') | {self.elements.frame: tab.frame}
        return gr.skip()

    def show(self, number: float, request: gr.Request) -> dict:
        """Go to a frame."""
        with told():
            tab = self.tabs[request.session_hash]
            if int(number) != tab.frame:
                return {
                    self.elements.editor: tab.show(int(number)),
                    self.elements.preview: picture(tab.session.overlay(tab.frame), f'frame {tab.frame}'),
                    self.elements.bar: bar(tab.session, tab.frame),
                }
        return gr.skip()

    def jump(self, event: gr.EventData, request: gr.Request) -> int | dict:
        """Go to the frame at a click on the bar. Its position is from 0 on the left to 1 on the right."""
        with told():
            tab, at = self.tabs[request.session_hash], float(event.at)
            if math.isfinite(at):
                return min(max(int(at * len(tab.session)), 0), len(tab.session) - 1)
        return gr.skip()

    def show_again(self, request: gr.Request) -> dict:
        """Show the frame with its present mask again, without what was painted since."""
        with told():
            tab = self.tabs[request.session_hash]
            return {self.elements.editor: tab.show(tab.frame)}
        return gr.skip()

    def refresh(self, drawn: dict | None, request: gr.Request) -> dict:
        """Show a frame again if its mask has changed since it was shown, unless something is painted on it."""
        tab = self.tabs.tabs.get(request.session_hash)  # without a clip, the propagation has said so
        if tab and drawn is None and not np.array_equal(tab.shown, tab.session.labels(tab.frame)):
            return {self.elements.editor: tab.show(tab.frame)}
        return gr.skip()

    def _changed_tool(self, request: gr.Request, change: Callable[[Tab], object]) -> dict:
        with told():
            tab = self.tabs[request.session_hash]
            change(tab)
            return self._tool_changed(tab)
        return gr.skip()

    def choose(self, chosen: int, request: gr.Request) -> dict:
        """Paint another object."""
        return self._changed_tool(request, lambda tab: tab.choose(chosen))

    def next_object(self, request: gr.Request) -> dict:
        """Paint the next object."""
        return self._changed_tool(request, Tab.next_object)

    def add_object(self, request: gr.Request) -> dict:
        """Add an object, and paint it."""
        return self._changed_tool(request, lambda tab: tab.choose(tab.session.add_object()))

    def rename(self, name: str, request: gr.Request) -> dict:
        """Rename the object that is painted."""
        return self._changed_tool(request, lambda tab: tab.session.rename(tab.label, object_name(name)))

    def size(self, radius: float, request: gr.Request) -> dict:
        """Change the radius of the brush."""
        return self._changed_tool(request, lambda tab: setattr(tab, 'brush', int(radius)))

    def remove_object(self, request: gr.Request) -> dict:
        """Remove the object that is painted from all masks."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                removed = tab.label
                tab.session.remove(removed)
            return self._all_changed(tab, f'Removed object {removed}.')
        return gr.skip()

    def undo(self, request: gr.Request) -> dict:
        """Undo the last change."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                what = tab.session.undo()
            return self._all_changed(tab, f'Undone: {what}.')
        return gr.skip()

    def keep(self, drawn: dict | None, request: gr.Request) -> dict:
        """Keep what is painted as the mask of the frame."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.keep(drawn, always=True)
            return self._masks_changed(tab)
        return gr.skip()

    def forget(self, request: gr.Request) -> dict:
        """Delete the painted mask of this frame."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.session.forget(tab.frame)
            return self._all_changed(tab)
        return gr.skip()

    def forward(self, drawn: dict | None, to_painted: bool, run: int, request: gr.Request) -> Iterator[dict]:
        """Propagate forwards."""
        yield from self._propagate('forward', drawn, to_painted, run, request)

    def backward(self, drawn: dict | None, to_painted: bool, run: int, request: gr.Request) -> Iterator[dict]:
        """Propagate backwards."""
        yield from self._propagate('backward', drawn, to_painted, run, request)

    def both(self, drawn: dict | None, to_painted: bool, run: int, request: gr.Request) -> Iterator[dict]:
        """Propagate both ways."""
        yield from self._propagate('both', drawn, to_painted, run, request)

    def _propagate(
        self, direction: Direction, drawn: dict | None, to_painted: bool, run: int, request: gr.Request
    ) -> Iterator[dict]:
        """Propagate from the present frame on, with previews. ``run`` is the number that the page gave it."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.keep(drawn)
                due = 0.0
                for reached in tab.session.propagate(tab.frame, direction, to_painted=bool(to_painted)):
                    if run <= tab.stopped:
                        ended = 'Stopped.'
                        break
                    if time.monotonic() < due:
                        continue
                    if reached.labels is None:
                        yield {self.elements.status: f'Going through other frames for the memory: {reached.frame}'}
                        continue
                    image = tab.session.overlay(reached.frame, reached.labels)
                    caption = f'frame {reached.frame} of {len(tab.session) - 1}, confidence {reached.confidence:.2f}'
                    yield {
                        self.elements.preview: picture(image, caption),
                        self.elements.status: f'Propagating: {caption}',
                        self.elements.bar: bar(tab.session, reached.frame),
                    }
                    due = time.monotonic() + PREVIEW_SECONDS
                else:
                    ended = 'Done.'
            yield self._masks_changed(tab, ended)  # the frame that is shown may be painted on meanwhile: see refresh
            return
        yield gr.skip()

    def adapt(self, drawn: dict | None, run: int, request: gr.Request) -> Iterator[dict]:
        """Adapt the network to the painted frames. After a stop the network is the one from before."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.keep(drawn)
                for done in tab.adapt(self.tabs.adapting):
                    if run <= tab.stopped:
                        ended = 'Stopped; the network is as it was.'
                        break
                    yield {self.elements.status: f'Adapting to this video: {100 * done:.0f} %'}
                else:
                    ended = 'Adapted. Now propagate again.'
            yield self._masks_changed(tab, ended)
            return
        yield gr.skip()

    def unadapt(self, request: gr.Request) -> dict:
        """Go back to the original network."""
        with told():
            tab = self.tabs[request.session_hash]
            with tab.alone():
                tab.unadapt()
            return self._masks_changed(tab, 'Done.')
        return gr.skip()

    def stop(self, run: int, request: gr.Request) -> None:
        """Stop the propagation after the current frame, or the adaptation, also if it has not begun yet."""
        with told():
            self.tabs[request.session_hash].stop(run)

    def _written(self, request: gr.Request, ending: str, write: Callable[[Session, Path], object]) -> str | dict:
        """Write a file of the tab's results with ``write``, and return its path."""
        with told():
            tab = self.tabs[request.session_hash]
            path = tab.session.folder / f'{tab.name}_{ending}'
            write(tab.session, path)
            return str(path)
        return gr.skip()

    def masks(self, request: gr.Request) -> str | dict:
        """Write a zip of the masks."""
        return self._written(request, 'masks.zip', write_masks)

    def video(self, request: gr.Request) -> str | dict:
        """Write a video with the masks drawn on it."""
        return self._written(request, 'overlay.mp4', Session.write_overlay)

    def leave(self, request: gr.Request) -> None:
        """Delete the clip of a tab that was closed."""
        self.tabs.drop(request.session_hash)
