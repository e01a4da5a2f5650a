"""The server of the web page, for this computer only."""

import logging
import threading
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from scripts.web_page import CSS, build
from scripts.web_tabs import Tabs

log = logging.getLogger(__name__)

KEYS = Path(__file__).with_name('web_page.js')
HOSTS = ('127.0.0.1', 'localhost')
UNUSED = ('/process_recording', '/dev/reload')  # gradio's paths that the page does not need; the first starts FFmpeg


class LocalOnly:
    """ASGI middleware that refuses unwanted requests.

    These are requests from other web pages, requests to fetch something from another server, and paths that the page
    does not need.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
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


def serve(tabs: Tabs, *, port: int) -> None:
    """Show the page until interrupted."""
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
        css=CSS,
        js=KEYS.read_text(encoding='utf-8'),
    )
    log.info('open %s in a browser; Ctrl-C stops', page.local_url)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
