"""A front process: ``python -m headrace.server.fronts --fd N``; only the core starts it."""

from __future__ import annotations

import argparse
import signal
import socket

import uvloop

from headrace.server.fronts.front import serve


def main() -> int:
    """Serve on the socket that was inherited, until it closes or the core says so."""
    parser = argparse.ArgumentParser(prog="python -m headrace.server.fronts", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="number of the socket to the core")
    # Whoever stops all processes of a service means the core, which has its fronts drain.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return uvloop.run(serve(socket.socket(fileno=parser.parse_args().fd)))


if __name__ == "__main__":
    raise SystemExit(main())
