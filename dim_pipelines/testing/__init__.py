"""Floor 7: what tests build networks from: nodes that misbehave on command, and in-memory twins of rows.

Shipped with the package, because who writes an engine, a pattern or a store needs the same to test it.
"""
