"""Download data sets and published weights into the published layout, beside the repository.

    python scripts/download.py weights davis youtube
    python scripts/download.py all --list

After an interruption run it again: downloads continue, unpacking starts anew, what is complete is skipped. Archives
that were fetched by hand count, too: --list says where each one has to be. An archive is deleted once it is unpacked.
"""

import argparse
import errno
import json
import logging
import os
import shutil
import ssl
import stat
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from util.cli import run_main  # noqa: E402

log = logging.getLogger(__name__)

# With confirm=t Drive does not ask whether to download what is too large for its virus scan; see PageParser.
DRIVE = 'https://drive.usercontent.google.com/download?id={}&export=download&confirm=t'
DRIVE_PAGE = 'https://drive.google.com/file/d/{}/view'
HEADERS = {'User-Agent': 'Mozilla/5.0 (compatible; stcn-pytorch)'}

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 5  # in a row that bring no byte
PAUSE = 2  # seconds before the second attempt; twice as long before each further one
MAX_RATIO = 20  # of unpacked to packed; images and masks hardly shrink in an archive
FEW_FILES = 10_000  # more of them have to take
MIN_PACKED = 250  # bytes on average, which is hardly more than their names; each takes a block of the disk
MAX_DEPTH = 32  # folders in each other
MARGIN = 2 * 10**9  # bytes that stay free where nobody knows how much will come
TRANSIENT = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class DownloadError(OSError):
    """A file cannot be had from its address."""


class ArchiveError(ValueError):
    """An archive is damaged, incomplete, not the expected one, or would do what an archive of images need not do."""


@dataclass(frozen=True)
class Source:
    """Something to download: a file, or an archive for a folder."""

    name: str
    url: str
    page: str  # for a browser
    target: Path  # the file, or the folder that the archive is unpacked into
    archive: Path | None = None  # lies in the target, as do all temporary files: one disk, no collisions
    holds: tuple[str, ...] = ()  # what the target contains directly when it is complete
    disk: int = 0  # free bytes that it takes, 0: only its server knows
    shares_target: bool = False  # other archives go there, too: its content alone says nothing

    @property
    def file(self) -> Path:
        """What the download is saved as."""
        return self.archive or self.target

    @property
    def part(self) -> Path:
        return self.file.with_name(f'{self.file.name}.part')

    @property
    def unpacking(self) -> Path:
        """Deep enough in the target that no reader of data sets looks there."""
        return self.target / '.unpacking' / self.file.name

    @property
    def marker(self) -> Path:
        """There once the archive has been unpacked completely."""
        return self.target / f'.{self.file.name}.complete'

    def is_complete(self) -> bool:
        """Also of a folder that was made without this script."""
        if self.archive is None:
            return self.target.is_file()
        by_hand = not self.shares_target and not self.unpacking.exists()
        return has_all(self.target, self.holds) and (self.marker.exists() or by_hand)

    def state(self) -> str:
        if self.is_complete():
            return 'complete'
        if self.file.is_file():
            return 'to be unpacked'
        size = file_size(self.part)
        return f'to be continued at {gigabytes(size)}' if size else 'to be downloaded'


def read_sources(path: Path, *, root: Path, saves: Path) -> dict[str, list[Source]]:
    """Group -> its sources, from a file like scripts/sources.json.

    Raises:
        DownloadError: the file is another one, or names places outside of the two folders.
    """
    sources: dict[str, list[Source]] = {}
    try:
        for group, entries in json.loads(path.read_text(encoding='utf-8')).items():
            if group == 'note':
                continue
            base = saves if group == 'weights' else root
            targets = [entry['to'] for entry in entries]
            sources[group] = [
                Source(
                    name=entry['name'],
                    url=DRIVE.format(entry['drive']) if 'drive' in entry else entry['url'],
                    page=DRIVE_PAGE.format(entry['drive']) if 'drive' in entry else entry.get('page', entry['url']),
                    target=base / inside(entry['to']),
                    archive=base / inside(entry['to']) / inside(entry['archive']) if 'archive' in entry else None,
                    holds=tuple(map(inside, entry.get('holds', ()))),
                    disk=int(1e9 * entry.get('gigabytes', 0)),
                    shares_target=targets.count(entry['to']) > 1,
                )
                for entry in entries
            ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f'{path}: expected a list as scripts/sources.json, found something else ({error!r})'
        ) from error
    return sources


def inside(name: str) -> str:
    """A relative name, of a file in a list or of a member of an archive, that stays in its folder.

    Raises:
        ValueError: it could lead out of it, or into a depth that no data set has.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts or any(character in name for character in '\\:\0'):
        raise ValueError(f'the name {name!r} could lead out of the folder')
    if len(path.parts) > MAX_DEPTH:
        raise ValueError(f'the name {name[:40]!r} ... is {len(path.parts)} folders deep')
    return name


# From a server to a file


def fetch(source: Source) -> None:
    """Download ``source.file``, continuing its .part file. The file appears when it is complete.

    Raises:
        DownloadError: with the reason and how to fetch the file by hand.
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
    """Append to ``source.part`` what is missing. Raises one of TRANSIENT if the connection ends early."""
    try:
        response = connect(source.url, start=file_size(source.part))
    except HTTPError as error:
        size = file_size(source.part)
        if error.code != 416 or not size:
            raise
        if error.headers.get('Content-Range') == f'bytes */{size}':
            return  # it was complete and only had to be renamed
        source.part.unlink()
        raise ConnectionError('the part that is here does not fit the file; starting anew') from error

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
            while chunk := response.read1(CHUNK):  # what has arrived, not only whole chunks
                if total is None:
                    require_disk(source.part.parent, MARGIN, source.name)
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and file_size(source.part) != total:
        raise ConnectionError(f'it ended at byte {file_size(source.part)} of {total}')


def connect(url: str, *, start: int) -> HTTPResponse:
    """A response with the file's bytes from ``start`` on, or all of them if the server cannot do that.

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
    """The title of a web page (Drive says there that a quota is exceeded) and, if it is the page by which Drive asks
    whether to download a large file without a virus scan, the address and fields of its form."""

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


# From an archive to a folder


class Member(NamedTuple):
    name: str
    size: int
    kind: str  # 'file', 'folder' or what makes it refused
    open: Callable[[], BinaryIO]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or an uncompressed .tar into a folder that does not exist yet.

    Members are regular files and folders with relative names, all that a data set needs; of these only name and
    content count. A link, a device, an absolute name or one with ``..`` is refused as such, not made harmless.

    Raises:
        ArchiveError: refused; damaged or incomplete; more than MAX_RATIO times as large unpacked, or so many files
            that there is hardly a byte for each.
        OSError: the disk is full or cannot be written.
    """
    if is_page(archive):
        raise ArchiveError(f'{archive}: expected an archive, found a web page. Delete it and run this again.')
    packed = file_size(archive)
    try:
        with zipfile.ZipFile(archive) if archive.suffix == '.zip' else tarfile.open(archive, 'r:') as opened:
            if isinstance(opened, zipfile.ZipFile):
                total, members = sum(info.file_size for info in opened.infolist()), zip_members(opened)
                count = len(opened.infolist())
                if count > max(FEW_FILES, packed // MIN_PACKED):
                    raise ArchiveError(f'{archive}: refused, {gigabytes(packed)} that unpack to {count:,} files')
            else:
                check_tar_end(archive)
                total, members = packed, tar_members(opened)  # without compression and holes
            if total > MAX_RATIO * packed:
                raise ArchiveError(f'{archive}: refused, {gigabytes(packed)} that unpack to {gigabytes(total)}')
            require_disk(folder.parent, total, archive.name)
            folder.mkdir(parents=True)
            with tqdm(total=total, unit='B', unit_scale=True, desc=f'unpacking {archive.name}', disable=None) as bar:
                for member in members:
                    write_member(member, folder, archive)
                    bar.update(member.size)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        struct.error,
        UnicodeDecodeError,
        RuntimeError,
        OSError,
    ) as error:  # RuntimeError: encryption
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that of a place before the beginning
            raise
        raise ArchiveError(
            f'{archive}: damaged, incomplete or of another kind ({error}). Delete it and run this again.'
        ) from error


def write_member(member: Member, folder: Path, archive: Path) -> None:
    try:
        target = folder / inside(member.name)
    except ValueError as error:
        raise ArchiveError(f'{archive}: refused, {error}') from error
    if member.kind not in ('file', 'folder'):
        raise ArchiveError(f'{archive}: refused, {member.name!r} is a {member.kind}, expected files and folders')
    try:
        (target if member.kind == 'folder' else target.parent).mkdir(parents=True, exist_ok=True)
        if member.kind == 'file':
            with member.open() as content, target.open('wb') as file:
                shutil.copyfileobj(content, file, CHUNK)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveError(f'{archive}: refused, {member.name!r} is both a file and a folder') from error


def zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = 'folder' if info.is_dir() else 'file'
        mode = stat.S_IFMT(info.external_attr >> 16)  # 0: not made under Unix
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = 'link' if mode == stat.S_IFLNK else 'special file'
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = 'member of a rare compression'  # LZMA takes as much memory as its header says
        # A member never yields more than file_size, whatever its data say: the total above is a bound.
        yield Member(info.filename, info.file_size, kind, lambda info=info: archive.open(info))


def tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        archive.members = []  # it would keep all of them: millions in BL30K
        if info.size < 0:  # older tarfiles go backwards then, for ever
            raise tarfile.ReadError('a member of negative size')
        kind = (
            'folder'
            if info.isdir()
            else 'file'
            if info.isreg() and not info.issparse()
            else ('link' if info.issym() or info.islnk() else 'special file')
        )
        yield Member(info.name, info.size, kind, lambda info=info: archive.extractfile(info))


def check_tar_end(archive: Path) -> None:
    """A tar ends with two empty blocks; tarfile takes one that was cut between two members for whole."""
    with archive.open('rb') as file:
        file.seek(max(0, file_size(archive) - 1024))
        if file.read() != bytes(1024):
            raise ArchiveError(f'{archive}: incomplete, its end is missing. Delete it and run this again.')


def install(source: Source, *, keep: bool = False) -> None:
    """Unpack the archive, move its content into the target, delete it. Interrupted at any point, it can start anew.

    Raises:
        ArchiveError: see ``unpack``; or the archive does not contain what it should. The target is as it was.
    """
    temporary = source.unpacking
    shutil.rmtree(temporary.parent, ignore_errors=True)
    try:
        unpack(source.archive, temporary)
        content = find_content(temporary, source.holds, source.archive)
    except (ArchiveError, OSError):
        shutil.rmtree(temporary.parent, ignore_errors=True)
        raise
    # As long as the temporary folder is there, the target does not count as complete.
    for item in content.iterdir():
        move(item, source.target / item.name)
    shutil.rmtree(temporary.parent)
    source.marker.touch()
    if not keep:
        source.archive.unlink()


def find_content(folder: Path, holds: tuple[str, ...], archive: Path) -> Path:
    """The outermost folder that has all of ``holds``; archives wrap it in others, one in the other."""
    inner = folder
    while not has_all(inner, holds):
        visible = [path for path in inner.iterdir() if not path.name.startswith(('.', '__MACOSX'))]
        if len(visible) != 1 or not visible[0].is_dir():
            found = ', '.join(sorted(path.name for path in visible)[:10]) or 'nothing'
            raise ArchiveError(
                f'{archive}: expected {" and ".join(holds)} in it, found {found}. If it is the right '
                f'archive, unpack it by hand into {archive.parent}.'
            )
        inner = visible[0]
    return inner


def move(source: Path, target: Path) -> None:
    """Move a file or a tree; folders that are there are joined, files replaced."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            move(child, target / child.name)
    else:
        os.replace(source, target)


# Small things


def has_all(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).exists() for name in names)


def is_page(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(1024).lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith((b'<!doctype html', b'<html'))


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def require_disk(folder: Path, size: int, name: str) -> None:
    """Raises OSError if fewer than ``size`` bytes are free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f'{name} needs {gigabytes(size)} of free disk, found {gigabytes(free)} in {folder}')


def gigabytes(size: int) -> str:
    return f'{size / 1e9:,.1f} GB' if size >= 1e8 else f'{size / 1e6:,.1f} MB'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        'groups',
        nargs='+',
        choices=['weights', 'static', 'davis', 'youtube', 'bl30k', 'all'],
        metavar='GROUP',
        help='weights, static, davis, youtube, bl30k (about 1 TB) or all',
    )
    add(
        '--root',
        type=Path,
        default=REPOSITORY.parent,
        help='folder of the data sets (default: the one that the repository lies in)',
    )
    add('--saves', type=Path, default=REPOSITORY / 'saves', help="folder of weights (default: the repository's saves)")
    add(
        '--sources',
        type=Path,
        default=Path(__file__).with_name('sources.json'),
        help='addresses, e.g. of a mirror (default: scripts/sources.json)',
    )
    add('--list', action='store_true', help='say what would be done, and do nothing')
    add('--keep', action='store_true', help='do not delete archives that are unpacked')
    args = parser.parse_args()

    groups = read_sources(args.sources, root=args.root, saves=args.saves)
    chosen = groups if 'all' in args.groups else dict.fromkeys(args.groups)
    sources = [source for group in chosen for source in groups[group]]
    if args.list:
        for source in sources:
            print(f'{source.name}: {source.state()}\n  from {source.page}\n  as   {source.file}')
        return 0

    pending = [source for source in sources if not source.is_complete()]
    require_disk(args.root, sum(max(0, source.disk - file_size(source.part)) for source in pending), 'this selection')
    failed = []
    for source in sources:
        try:
            if source not in pending:
                log.info('%s: complete', source.name)
                continue
            if not source.file.is_file():
                fetch(source)
            if source.archive:
                install(source, keep=args.keep)
            log.info('%s: done, in %s', source.name, source.target)
        except (OSError, ArchiveError) as error:
            log.error('FAILED %s: %s', source.name, error)
            failed.append(source.name)
    if failed:
        log.error('failed: %s', '; '.join(failed))
    elif 'youtube' in chosen:
        log.info('next, for training: python scripts/convert.py youtube --root %s', args.root / 'YouTube')
    return 1 if failed else 0


if __name__ == '__main__':
    run_main(main)
