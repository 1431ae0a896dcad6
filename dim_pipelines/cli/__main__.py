"""`python -m dim_pipelines.cli` is `dim`."""

from __future__ import annotations

import sys

from dim_pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
