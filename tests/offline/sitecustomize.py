"""Lets a Python process connect to this machine only. The tests put this module on the path (tests/conftest.py).

Each attempt is also logged in the file that STCN_TEST_NETWORK_LOG names, since a library may swallow the error. The
tests of this module use addresses that are reserved for documentation, which are not logged.
"""

import os
import runpy
import sys
from pathlib import Path

RESERVED = ('192.0.2.', 'test.invalid')

remote_host = runpy.run_path(str(Path(__file__).parents[2] / 'util' / 'offline.py'))['remote_host']


def refuse(event: str, arguments: tuple) -> None:
    host = remote_host(event, arguments)
    if host is None:
        return
    if 'STCN_TEST_NETWORK_LOG' in os.environ and not host.startswith(RESERVED):
        with open(os.environ['STCN_TEST_NETWORK_LOG'], 'a') as log:
            log.write(f'{event} {host}: {" ".join(sys.argv[:3])}\n')
    raise AssertionError(f'the tests need no network, but {event} was called for {host}')


sys.addaudithook(refuse)
