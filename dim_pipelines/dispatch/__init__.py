"""Floor 4: a batch from plan to manifest: the dispatcher, its journal, its clients of nodes, the portal.

Dispatch knows neither Dagster nor the database: it takes a `BatchHead`, which `orchestrator/batches` implements.
"""
