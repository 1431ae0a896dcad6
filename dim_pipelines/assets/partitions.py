"""The one set of partitions: a partition is a batch, its key is the batch's id."""

import dagster as dg

from dim_pipelines.orchestrator.dagster_instance import PARTITIONS

batch_partitions = dg.DynamicPartitionsDefinition(name=PARTITIONS)
