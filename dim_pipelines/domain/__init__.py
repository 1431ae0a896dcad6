"""Floor 0: the frozen values that every other floor speaks in.

Only values, their formats and their own checks live here: no I/O, no asyncio, no gRPC, no Dagster.
Each stored value carries its major version `v` and has golden bytes under `tests/golden/`.
"""
