"""Writes the vectors of formats that have none yet; one that is there is never touched.

Usage: python tests/golden/write_new.py
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    golden = runpy.run_path(str(FOLDER / "test_golden.py"))
    index = FOLDER / "cids.json"
    cids = json.loads(index.read_text()) if index.exists() else {}
    for name, make in golden["make_vectors"]().items():
        if name in cids:
            continue
        suffix, data = make()
        with (FOLDER / "vectors" / f"{name}.{suffix}").open("xb") as file:
            file.write(data)
        cids[name] = str(golden["cid_of"](suffix, data))
        print(f"{name}: {cids[name]}")
    index.write_text(json.dumps(cids, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
