"""What the web page shows, and which of its handlers each element calls."""

import gradio as gr

from scripts.web_handlers import Elements, Handlers, tools
from scripts.web_tabs import OBJECTS, Tabs

HELP = """**1.** Upload a clip. **2.** Go to a frame, choose an object and paint it; the eraser makes background.
**3.** Propagate. **4.** Go to a frame where the mask is wrong, correct it and propagate from there: the frames before
keep their masks. A painting that is neither kept nor propagated is gone when you go to another frame. What you
paint is complete: an object that you leave out is not there. Objects begin on the frame they are painted on."""


def build(tabs: Tabs) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title='STCN', analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as page:
        gr.Markdown(f'# Video object segmentation\n{HELP}')
        with gr.Row():
            with gr.Column(scale=3):
                changing, buttons = painting()
            with gr.Column(scale=2):
                limits = f'{tabs.max_seconds:g} s and {tabs.max_bytes / 1e6:.0f} MB'
                more, takes = clip_and_results(limits)
        elements = Elements(**changing, **more)
        handlers = Handlers(tabs, elements)
        connect(elements, buttons | takes, handlers)
        page.unload(handlers.leave)
    return page


def painting() -> tuple[dict[str, gr.Component], dict[str, gr.Button]]:
    """The frame, the editor on it, and the buttons below: fields of ``Elements``, and buttons by name."""
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
        buttons = {
            'add': add,
            'propagate': gr.Button('Propagate from here', variant='primary', size='sm', min_width=100),
            'stop': gr.Button('Stop', variant='stop', size='sm', min_width=100),
            'keep': gr.Button('Keep this mask', size='sm', min_width=100),
            'forget': gr.Button('Forget it', size='sm', min_width=100),
        }
    return {'frame': frame, 'label': label, 'editor': editor}, buttons


def clip_and_results(limits: str) -> tuple[dict[str, gr.Component], dict[str, gr.Button]]:
    """What goes in and comes out, as of ``painting``. ``limits``: of an upload, in words."""
    changing = {
        'file': gr.File(
            label=f'Clip: a video or a zip of images, up to {limits}',
            file_types=['video', '.zip'],
            height=140,
            elem_id='file',
        ),
        'status': gr.Markdown('No clip yet.', elem_id='status'),
        'preview': gr.HTML(elem_id='preview'),
        'doubtful': gr.Radio([], label='Least sure: look at these next', elem_id='doubtful'),
    }
    with gr.Row():
        buttons = {
            'masks': gr.Button('Masks (zip)', size='sm', min_width=100),
            'video': gr.Button('Overlay (video)', size='sm', min_width=100),
        }
    changing['files'] = gr.File(label='Download', interactive=False, height=110, elem_id='files')
    return changing, buttons


def connect(on: Elements, buttons: dict[str, gr.Button], do: Handlers) -> None:
    """Which handler each element calls, with whose values, and what it may change."""
    quiet = {'show_progress': 'hidden', 'api_visibility': 'private'}
    everything = [on.file, on.files, on.frame, on.label, on.editor, on.status, on.preview, on.doubtful]
    on.file.upload(do.load, on.file, everything, **quiet)
    on.frame.change(do.show, on.frame, [on.editor, on.preview], trigger_mode='always_last', **quiet)
    on.editor.clear(do.show_again, None, [on.editor], **quiet)
    on.label.input(do.choose, on.label, on.editor, **quiet)
    buttons['add'].click(do.add_object, None, [on.label, on.editor], **quiet)
    buttons['propagate'].click(
        do.propagate, on.editor, [on.editor, on.preview, on.status, on.doubtful, on.files], **quiet
    )
    buttons['stop'].click(do.stop, None, None, **quiet)
    buttons['keep'].click(do.keep, on.editor, [on.status, on.doubtful, on.files], **quiet)
    buttons['forget'].click(do.forget, None, [on.editor, on.status, on.files], **quiet)
    on.doubtful.input(lambda chosen: chosen, on.doubtful, on.frame, **quiet)
    buttons['masks'].click(do.masks, None, on.files, api_visibility='private')
    buttons['video'].click(do.video, None, on.files, api_visibility='private')
