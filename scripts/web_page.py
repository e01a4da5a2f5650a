"""The elements of the web page, and the handlers that they call."""

import gradio as gr

from dataset.mask_files import MASK_SUFFIXES
from scripts.web_elements import Elements, tools
from scripts.web_handlers import Handlers
from scripts.web_paint import BAR_LEGEND
from scripts.web_tabs import Tabs

HELP = """**1.** Upload a clip. **2.** Go to a frame that shows the objects well; paint them, or import masks.
**3.** Propagate. **4.** Go to a frame where the mask is wrong, correct it, and propagate both ways, up to the next
painted frames. A painting is lost when you go to another frame without keeping or propagating it. A painted mask is
complete: an object that you do not paint is absent on this frame. "Adapt to this video" trains a copy of the network
on the painted frames for a short time; propagate again afterwards. To save your work, download the masks (zip). To
continue later, upload the clip again and import this zip."""

KEYS = """| key | does | key | does |
|---|---|---|---|
| ← → | previous, next frame | b | propagate both ways |
| Home, End | first, last frame | Shift ← → | propagate backwards, forwards |
| [ ] | smaller, larger brush | u | stop at the next painted frame: on, off |
| d, e | brush, eraser | s | stop |
| n | next object | z, Ctrl Z | undo the last stroke or, without one, the last change |
| a | add an object | k, f | keep this mask, forget it |
| m | masks (zip) | | |"""

CSS = """
#preview figure {margin: 0}
#preview img {width: 100%}
#bar .frames {display: flex; height: 20px; position: relative; cursor: pointer; border-radius: 4px; overflow: hidden}
#bar .frames i {position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: currentColor}
#bar .legend {font-size: 12px; display: flex; gap: 6px; align-items: center}
#bar .legend span {width: 10px; height: 10px; border-radius: 2px; margin-left: 8px}
""" + ''.join(f'#bar .{kind} {{background: {colour}}}\n' for kind, colour in BAR_LEGEND.items())

CLICK = """
element.addEventListener('click', event => {
  const box = element.querySelector('.frames')?.getBoundingClientRect();
  if (box && event.clientY <= box.bottom) trigger('click', {at: (event.clientX - box.left) / box.width});
});
"""


def build(tabs: Tabs) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title='STCN', analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as page:
        gr.Markdown(f'# Video object segmentation\n{HELP}')
        with gr.Row():
            with gr.Column(scale=3):
                changing, buttons = painting()
            with gr.Column(scale=2):
                limits = f'{tabs.max_seconds:g} s and {tabs.max_bytes / 1e6:.0f} MB'
                more, takes = clip_and_results(limits)
                with gr.Accordion('Keys', open=False):
                    gr.Markdown(KEYS)
        elements = Elements(**changing, **more)
        handlers = Handlers(tabs, elements)
        connect(elements, buttons | takes, handlers)
        page.unload(handlers.leave)
    return page


def button(name: str, text: str, **options) -> gr.Button:
    return gr.Button(text, size='sm', min_width=80, elem_id=name, **options)


def painting() -> tuple[dict[str, gr.Component], dict[str, gr.Component]]:
    """Make the part for painting. Returns fields of ``Elements`` and the buttons, each by name."""
    frame = gr.Slider(0, 1, 0, step=1, label='Frame', interactive=False, elem_id='frame')
    bar = gr.HTML(js_on_load=CLICK, elem_id='bar')
    with gr.Row():
        label = gr.Radio([], label='Object', scale=4, elem_id='object')
        name = gr.Textbox(label='Its name', max_lines=1, scale=1, min_width=120, elem_id='name')
        brush = gr.Slider(2, 100, 12, step=1, label='Brush', scale=1, min_width=140, elem_id='brush')
    with gr.Row():
        buttons: dict[str, gr.Component] = {
            'next_object': button('next_object', 'Next object'),
            'add_object': button('add_object', 'Add object'),
            'remove_object': button('remove_object', 'Remove object', variant='stop'),
            'undo': button('undo', 'Undo'),
        }
    editor = gr.ImageEditor(
        label='Paint',
        type='numpy',
        format='png',
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        height=440,
        canvas_size=(1, 1),  # in a larger one, a layer would be in the centre until the first stroke
        elem_id='editor',
        **tools(1, 12),
    )
    with gr.Row():
        buttons |= {
            'backward': button('backward', '◀ Backwards', variant='primary'),
            'both': button('both', '◀ Both ways ▶', variant='primary'),
            'forward': button('forward', 'Forwards ▶', variant='primary'),
            'stop': button('stop', 'Stop', variant='stop'),
            'run': gr.Number(0, precision=0, visible=False),  # web_page.js gives its value
        }
    with gr.Row():
        buttons |= {
            'to_painted': gr.Checkbox(label='up to the next painted frame', container=False, elem_id='to_painted'),
            'keep': button('keep', 'Keep this mask'),
            'forget': button('forget', 'Forget it'),
            'adapt': button('adapt', 'Adapt to this video'),
            'unadapt': button('unadapt', 'Original network'),
        }
    return {'frame': frame, 'bar': bar, 'label': label, 'name': name, 'brush': brush, 'editor': editor}, buttons


def clip_and_results(limits: str) -> tuple[dict[str, gr.Component], dict[str, gr.Component]]:
    """Make the part for uploads and results. Returns the same as ``painting``.

    ``limits`` says in words how long and large an upload may be.
    """
    changing = {
        'file': gr.File(
            label=f'Clip: a video or a zip of images, up to {limits}',
            file_types=['video', '.zip'],
            height=140,
            elem_id='file',
        ),
        'status': gr.Markdown('No clip yet.', elem_id='status'),
        'preview': gr.HTML(elem_id='preview'),
        'doubtful': gr.Radio([], label='Least sure frames: look at these next', elem_id='doubtful'),
    }
    with gr.Row():
        buttons = {
            'import': gr.UploadButton(
                'Import masks',
                file_count='multiple',
                file_types=['.zip', *MASK_SUFFIXES],
                size='sm',
                min_width=80,
                elem_id='import',
            ),
            'masks': button('masks', 'Masks (zip)'),
            'video': button('video', 'Overlay (video)'),
        }
    changing['files'] = gr.File(label='Download', interactive=False, height=110, elem_id='files')
    return changing, buttons


def connect(on: Elements, buttons: dict[str, gr.Component], do: Handlers) -> None:
    """Connect each element with its handler, the elements whose values it gets, and those that it may change."""
    quiet = {'show_progress': 'hidden', 'api_visibility': 'private'}
    in_turn = quiet | {'trigger_mode': 'multiple'}  # key presses may come faster than the handler returns
    masks = [on.status, on.bar, on.doubtful, on.files]
    tool = [on.label, on.name, on.editor]
    everything = [*masks, *tool, on.frame, on.preview]

    on.file.upload(do.load, on.file, [*everything, on.file, on.brush], **quiet)
    buttons['import'].upload(do.import_masks, buttons['import'], everything, **in_turn)
    shown = [on.frame, [on.editor, on.preview, on.bar]]
    change = on.frame.change(do.show, *shown, js='frame => shown(frame)', trigger_mode='always_last', **quiet)
    change.then(do.show, *shown, **quiet)  # the last of several quick changes may have got lost
    on.bar.click(do.jump, None, on.frame, **quiet)
    on.doubtful.input(lambda chosen: chosen, on.doubtful, on.frame, **quiet)

    on.editor.clear(do.show_again, None, [on.editor], **quiet)
    on.label.input(do.choose, on.label, tool, **quiet)
    on.name.submit(do.rename, on.name, tool, **quiet)
    on.brush.change(do.size, on.brush, tool, trigger_mode='always_last', **quiet)
    buttons['next_object'].click(do.next_object, None, tool, **in_turn)
    buttons['add_object'].click(do.add_object, None, tool, **in_turn)
    buttons['remove_object'].click(do.remove_object, None, everything, **quiet)
    buttons['undo'].click(do.undo, None, everything, **in_turn)

    for name in ('forward', 'backward', 'both'):
        reached = [*masks, on.preview]
        given = [on.editor, buttons['to_painted'], buttons['run']]
        js = '(editor, to_painted) => [drawn(editor), to_painted, run]'
        done = buttons[name].click(getattr(do, name), given, reached, js=js, **quiet)
        done.then(do.refresh, on.editor, [on.editor], js='editor => [drawn(editor)]', **quiet)
    given = [on.editor, buttons['run']]
    buttons['adapt'].click(do.adapt, given, masks, js='editor => [drawn(editor), run]', **quiet)
    buttons['unadapt'].click(do.unadapt, None, masks, **quiet)
    buttons['stop'].click(do.stop, buttons['run'], None, js='() => run', **quiet)
    buttons['keep'].click(do.keep, on.editor, masks, js='editor => [drawn(editor)]', **quiet)
    buttons['forget'].click(do.forget, None, everything, **quiet)
    buttons['masks'].click(do.masks, None, on.files, api_visibility='private')
    buttons['video'].click(do.video, None, on.files, api_visibility='private')
