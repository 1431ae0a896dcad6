"""Floor 5: the node daemon: it admits sessions, runs tasks in confined engine processes and serves its blocks.

The daemon never imports torch, Dagster or a model's code; models run only behind `engine_process`. Rules
(arbitration, admission, credit windows) are pure; the shells around them carry bytes.
"""
