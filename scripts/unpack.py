"""Unpacks archives of data sets. Damaged archives, and members that no data set needs, are errors."""

import errno
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from scripts.sources import Source, file_size, has_all, inside, is_page
from util.files import gigabytes, require_disk

CHUNK = 1 << 20
MAX_RATIO = 20  # largest ratio of unpacked to packed bytes; images and masks hardly shrink in an archive
# The least packed bytes for each file in an archive of more than FEW_FILES files. They are hardly more than a file's
# name takes. Without this limit, many tiny files could fill the disk with nearly empty blocks.
MIN_PACKED = 250
FEW_FILES = 10_000


class ArchiveError(ValueError):
    """An archive is damaged, incomplete or not the expected one, or has members that no data set needs."""


class Member(NamedTuple):
    name: str
    size: int
    kind: str  # 'file', 'folder', or a kind that is refused
    open: Callable[[], BinaryIO]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or an uncompressed .tar into a folder that does not exist yet.

    A data set needs only regular files and folders with relative names. An archive with a link, a device, an absolute
    name or a name with ``..`` is refused. Of each member only name and content are used.

    Raises:
        ArchiveError: the archive is refused, damaged or incomplete, is more than MAX_RATIO times as large when
            unpacked, or has too many files for its size (MIN_PACKED).
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
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: the archive has a negative position
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
        mode = stat.S_IFMT(info.external_attr >> 16)  # 0: the archive was not made under Unix
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = 'link' if mode == stat.S_IFLNK else 'special file'
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = 'member of a rare compression'  # LZMA takes as much memory as its header says
        # A member never yields more than file_size bytes, whatever its data say, so the total above is a bound.
        yield Member(info.filename, info.file_size, kind, lambda info=info: archive.open(info))


def tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        archive.members = []  # otherwise it keeps all members, which are millions in BL30K
        if info.size < 0:  # older versions of tarfile would then go backwards in an endless loop
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
    """Check that a tar ends with two empty blocks. tarfile does not notice if it was cut off between two members."""
    with archive.open('rb') as file:
        file.seek(max(0, file_size(archive) - 1024))
        if file.read() != bytes(1024):
            raise ArchiveError(f'{archive}: incomplete, its end is missing. Delete it and run this again.')


def install(source: Source, *, keep: bool = False) -> None:
    """Unpack the archive, move its content into the target, and delete the archive. It can start again at any time.

    Raises:
        ArchiveError: see ``unpack``; or the archive lacks the expected content. The target is unchanged.
    """
    temporary = source.unpacking
    shutil.rmtree(temporary.parent, ignore_errors=True)
    try:
        unpack(source.archive, temporary)
        content = find_content(temporary, source.holds, source.archive)
    except (ArchiveError, OSError):
        shutil.rmtree(temporary.parent, ignore_errors=True)
        raise
    # As long as the temporary folder exists, the target does not count as complete.
    for item in content.iterdir():
        move(item, source.target / item.name)
    shutil.rmtree(temporary.parent)
    source.marker.touch()
    if not keep:
        source.archive.unlink()


def find_content(folder: Path, holds: tuple[str, ...], archive: Path) -> Path:
    """Find the outermost folder that has all of ``holds``. Archives may wrap it in several folders."""
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
    """Move a file or a folder with its content. Existing folders are merged, existing files replaced."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            move(child, target / child.name)
    else:
        os.replace(source, target)
