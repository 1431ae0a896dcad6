"""Floor 7: the command line `dim`, one file per noun.

A command reads its arguments, calls one or two functions of the floors below and prints; rules live
below. Everything heavy (pyarrow, gRPC, SQLAlchemy, torch) is imported inside the command that needs it,
so that `dim --help` answers at once. Errors and exit codes are made in one place, `application.run`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code.

    Args:
        argv: the arguments without the program's name; those of this process when left out.
    """
    # Commands start programs while gRPC is in use; its fork handlers serve only children that go on using it, and
    # say so on standard error each time they cannot.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        from dim_pipelines.cli.application import run
    except KeyboardInterrupt:
        return 130
    return run(argv)
