"""The command line: `nnunet_pretrain <verb>`. Each verb only parses and calls a function of the package.

Imports happen inside the verbs, so that help is shown without loading torch. The verbs stand in modules of their own,
in the order in which a user meets them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from nnunet_pretrain import __version__
from nnunet_pretrain.cli import (
    classification,
    conversion,
    demonstration,
    domains,
    natural_images,
    pretraining,
    transfer,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0 on success, 1 if cases were quarantined, 2 after a user error (one line on standard error), 130 after an
        interruption.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, OSError) as error:  # OSError: no permission, no space, a file where a folder should be
        print(f"nnunet_pretrain {arguments.verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nnunet_pretrain {arguments.verb}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_pretrain",
        description="Supervised pre-training on merged, partially labelled CT datasets for nnU-Net v2.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-pretrain {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="<verb>", required=True)
    for module in (conversion, pretraining, domains, natural_images, transfer, classification, demonstration):
        module.add_verbs(verbs)
    return parser
