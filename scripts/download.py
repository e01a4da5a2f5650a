"""Download data sets and published weights, in the published layout of folders beside the repository.

    python scripts/download.py weights davis youtube
    python scripts/download.py all --list

After an interruption run the same command again: downloads continue, unpacking starts again, and complete data sets
are skipped. You may also download archives by hand: --list says where each one has to be. An archive is deleted when
it is unpacked.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from scripts.fetch import fetch  # noqa: E402
from scripts.sources import file_size, read_sources  # noqa: E402
from scripts.unpack import ArchiveError, install  # noqa: E402
from util.cli import run_main  # noqa: E402
from util.files import require_disk  # noqa: E402

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        'groups',
        nargs='+',
        choices=['weights', 'static', 'davis', 'youtube', 'bl30k', 'all'],
        metavar='GROUP',
        help='what to download: weights, static, davis, youtube, bl30k (about 1 TB) or all',
    )
    add(
        '--root',
        type=Path,
        default=REPOSITORY.parent,
        help='folder for the data sets (default: the folder that contains the repository)',
    )
    add(
        '--saves', type=Path, default=REPOSITORY / 'saves', help="folder for weights (default: the repository's saves)"
    )
    add(
        '--sources',
        type=Path,
        default=Path(__file__).with_name('sources.json'),
        help='file with the addresses, e.g. of a mirror (default: scripts/sources.json)',
    )
    add('--list', action='store_true', help='only print what would be downloaded')
    add('--keep', action='store_true', help='keep the archives after unpacking')
    args = parser.parse_args(argv)

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
            log.info('%s: done, it is in %s', source.name, source.target)
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
