"""Floor 1: how models and rows combine: pure planners and reducers over tables.

A pattern reaches nodes only through what it plans; it does no I/O and knows no store. New ones come by the
entry point group `dim_pipelines.patterns`.
"""
