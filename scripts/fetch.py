"""Downloads files, also from Google Drive, and continues after an interruption."""

import logging
import os
import ssl
import time
from contextlib import closing
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from scripts.sources import DownloadError, Source, file_size, is_page
from util.files import gigabytes, require_disk

log = logging.getLogger(__name__)

HEADERS = {'User-Agent': 'Mozilla/5.0 (compatible; stcn-pytorch)'}
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte after which a connection has failed
ATTEMPTS = 5  # failed attempts in a row, without a new byte, after which it gives up
PAUSE = 2  # seconds before the second attempt; twice as long before each further one
MARGIN = 2 * 10**9  # bytes of the disk that stay free if the size of the download is unknown
TRANSIENT = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def fetch(source: Source) -> None:
    """Download ``source.file``, continuing its .part file. The file appears when it is complete.

    Raises:
        DownloadError: the download failed. The message has the reason and says how to download the file by hand.
        OSError: the disk is full or cannot be written.
    """
    source.part.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    while True:
        before = file_size(source.part)
        try:
            fetch_rest(source)
            break
        except HTTPError as error:
            reason, failed = f'the server answered {error.code} {error.reason}', failed + 1
            if error.code < 500 and error.code not in (408, 429):
                failed = ATTEMPTS
        except DownloadError as error:
            reason, failed = str(error), ATTEMPTS
        except TRANSIENT as error:
            reason = f'the connection failed ({getattr(error, "reason", error)})'
            failed = 1 if file_size(source.part) > before else failed + 1
        if failed >= ATTEMPTS:
            raise DownloadError(
                f'{reason}\n  from {source.url}\n  By hand: open {source.page}\n  save the file as '
                f'{source.file.resolve()}\n  and run this again' + (', to unpack it.' if source.archive else '.')
            )
        log.warning('%s: %s; trying again', source.name, reason)
        time.sleep(PAUSE * 2 ** (failed - 1))
    if is_page(source.part):
        source.part.unlink()
        raise DownloadError(f'the server sent a web page instead of {source.file.name}. By hand: {source.page}')
    os.replace(source.part, source.file)


def fetch_rest(source: Source) -> None:
    """Append the missing bytes to ``source.part``. Raises one of TRANSIENT if the connection ends early."""
    try:
        response = connect(source.url, start=file_size(source.part))
    except HTTPError as error:
        size = file_size(source.part)
        if error.code != 416 or not size:
            raise
        if error.headers.get('Content-Range') == f'bytes */{size}':
            return  # the part is complete and only has to be renamed
        source.part.unlink()
        raise ConnectionError('the downloaded part does not belong to this file; starting again') from error

    with closing(response):
        start, total = extent(response)
        if start not in (0, file_size(source.part)):
            raise DownloadError(f'the server continued at byte {start} instead of {file_size(source.part)}')
        if total is not None:
            require_disk(source.part.parent, total - start + (total if source.archive else 0), source.name)
        log.info(
            '%s: %s%s',
            source.name,
            gigabytes(total) if total else 'size unknown',
            f', continued at {gigabytes(start)}' if start else '',
        )
        bar = tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=source.file.name, disable=None)
        with bar, source.part.open('ab' if start else 'wb') as file:
            while chunk := response.read1(CHUNK):  # read1 returns the bytes that have arrived, not only whole chunks
                if total is None:
                    require_disk(source.part.parent, MARGIN, source.name)
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and file_size(source.part) != total:
        raise ConnectionError(f'it ended at byte {file_size(source.part)} of {total}')


def connect(url: str, *, start: int) -> HTTPResponse:
    """Open a response with the file's bytes from ``start`` on, or with all of them if the server cannot skip bytes.

    Raises:
        DownloadError: the answer is a web page, other than Drive's form for large files.
    """
    page = PageParser()
    for _ in range(2):
        if urlsplit(url).scheme not in ('http', 'https'):  # urllib would also read local files
            raise DownloadError(f'expected an address that begins with http, found {url}')
        request = Request(url, headers=HEADERS | ({'Range': f'bytes={start}-'} if start else {}))
        response = urlopen(request, timeout=TIMEOUT)
        if response.headers.get_content_type() != 'text/html':
            return response
        with closing(response):
            page = PageParser()
            page.feed(response.read(CHUNK).decode(errors='replace'))
        if page.form is None:
            break
        url = urljoin(url, page.form) + '?' + urlencode(page.fields)
    raise DownloadError(f'the server sent a web page ({page.title.strip() or "without a title"}) instead of the file')


class PageParser(HTMLParser):
    """Reads the title of a web page and the form of Google Drive's page for large files.

    Drive says in the title if a quota is exceeded. For a large file it asks whether to download it without a virus
    scan; the answer is the address and the fields of the form on this page.
    """

    def __init__(self) -> None:
        super().__init__()
        self.title = ''
        self.form: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == 'form' and attributes.get('id') == 'download-form':
            self.form = attributes.get('action')
        elif tag == 'input' and self.form and attributes.get('type') == 'hidden':
            self.fields[attributes.get('name') or ''] = attributes.get('value') or ''

    def handle_data(self, data: str) -> None:
        if self.lasttag == 'title':
            self.title += data


def extent(response: HTTPResponse) -> tuple[int, int | None]:
    """The first byte of the file that a response sends, and the size of the whole file if it is known."""
    if response.status == 206:  # Content-Range: bytes 1000-1999/2000
        span, _, total = response.headers.get('Content-Range', '').removeprefix('bytes ').partition('/')
        first = span.partition('-')[0]
        if not first.isdigit():
            raise DownloadError('the server sent a part of the file without saying which')
        return int(first), int(total) if total.isdigit() else None
    length = response.headers.get('Content-Length', '')
    return 0, int(length) if length.isdigit() else None
