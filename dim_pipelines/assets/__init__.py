"""Floor 6: what Dagster shows of DIM: assets, their checks, jobs and partitions.

Dagster sees batches, DIM sees shards: one partition is one batch, and everything below a batch happens inside
one op. Assets are plain functions; they reach the machine through the objects that resources build and cross
to asyncio by `dispatch.portal` only. Modules with assets do not postpone annotations, because Dagster compares
the annotation of `context` with the class itself.
"""
