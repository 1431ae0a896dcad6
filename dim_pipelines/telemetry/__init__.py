"""Floor 0: what DIM tells about itself: metrics with their labels and meaning, and logging.

Nothing here knows a batch, a node or a store; other floors hand in numbers and words.
"""
