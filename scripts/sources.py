"""Lists what can be downloaded, from which addresses, and whether it exists already."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from util.files import gigabytes

# With confirm=t, Drive does not ask whether to download a file that is too large for its virus scan; see PageParser.
DRIVE = 'https://drive.usercontent.google.com/download?id={}&export=download&confirm=t'
DRIVE_PAGE = 'https://drive.google.com/file/d/{}/view'
MAX_DEPTH = 32  # largest number of nested folders


class DownloadError(OSError):
    """A file cannot be downloaded."""


@dataclass(frozen=True)
class Source:
    """Something to download: a file, or an archive for a folder."""

    name: str
    url: str
    page: str  # address of a page to open in a browser
    target: Path  # the file, or the folder that the archive is unpacked into
    archive: Path | None = None  # it is in the target, like all temporary files, so that they are on one disk
    holds: tuple[str, ...] = ()  # names that are directly in the target when it is complete
    disk: int = 0  # free bytes that it needs; 0: unknown before the download
    shares_target: bool = False  # other archives are unpacked there, too, so `holds` alone does not prove completeness

    @property
    def file(self) -> Path:
        """The file in which the download is saved."""
        return self.archive or self.target

    @property
    def part(self) -> Path:
        return self.file.with_name(f'{self.file.name}.part')

    @property
    def unpacking(self) -> Path:
        """The folder for unpacking. It is hidden in the target, so that no reader of data sets finds it."""
        return self.target / '.unpacking' / self.file.name

    @property
    def marker(self) -> Path:
        """A file that exists once the archive has been unpacked completely."""
        return self.target / f'.{self.file.name}.complete'

    def is_complete(self) -> bool:
        """Whether the target is complete, also if it was made without this script."""
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
    """Read a file like scripts/sources.json: name of a group -> its sources.

    Raises:
        DownloadError: the file has another format, or a target would be outside of the two folders.
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
            f'{path}: expected a list like scripts/sources.json, found something else ({error!r})'
        ) from error
    return sources


def inside(name: str) -> str:
    """Return a relative name of a file after checking that it stays in its folder.

    Raises:
        ValueError: the name could lead out of the folder, or has more nested folders than any data set.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts or any(character in name for character in '\\:\0'):
        raise ValueError(f'the name {name!r} could lead out of the folder')
    if len(path.parts) > MAX_DEPTH:
        raise ValueError(f'the name {name[:40]!r} ... is {len(path.parts)} folders deep')
    return name


def has_all(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).exists() for name in names)


def is_page(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(1024).lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith((b'<!doctype html', b'<html'))


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
