"""Floor 2: the wire: Protocol Buffers, the sans-IO work session, channels, servers' interceptors.

The wire is a translation, never a model: messages are turned into domain values at the edge. Hand-written
code never sits in `v1/` or `inference/`; `make protos` writes those.
"""
