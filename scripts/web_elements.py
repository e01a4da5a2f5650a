"""The elements of the web page that handlers change, and what they show."""

import base64
from dataclasses import dataclass

import cv2
import gradio as gr
import numpy as np

from dataset.io import PALETTE


def tools(label: int, radius: int) -> dict:
    """The editor's brush and eraser for an object."""
    colour = '#{:02x}{:02x}{:02x}'.format(*PALETTE[label].tolist())
    return {
        'brush': gr.Brush(colors=[colour], default_color=colour, color_mode='fixed', default_size=radius),
        'eraser': gr.Eraser(default_size=radius),
    }


def picture(image: np.ndarray, caption: str) -> str:
    """An image as HTML that contains its pixels, so that no file is needed."""
    coded = cv2.imencode('.jpg', image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
    data = base64.b64encode(coded.tobytes()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


@dataclass(frozen=True)
class Elements:
    """The elements of the page that handlers change."""

    file: gr.File
    frame: gr.Slider
    bar: gr.HTML
    label: gr.Radio
    name: gr.Textbox
    brush: gr.Slider
    editor: gr.ImageEditor
    status: gr.Markdown
    preview: gr.HTML
    doubtful: gr.Radio
    files: gr.File
