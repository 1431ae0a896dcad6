"""Floor 2: the one SQL database of DIM: its engine, its tables and their migrations.

SQLite in a DIM_HOME or Postgres (schema `dim`) by one URL. Statements that belong to a table's meaning live with
their owner (`orchestrator/batches`), not here.
"""
