"""Options that several verbs share."""

from __future__ import annotations

import argparse


def add_processes(verb: argparse.ArgumentParser) -> None:
    """Adds -np."""
    verb.add_argument("-np", type=int, default=2, metavar="N", help="worker processes (default: %(default)s)")
