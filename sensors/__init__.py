"""Floor 6: when to start: what Dagster's daemon looks at, and the runs it asks for.

Sensors may import assets (jobs, partitions); they know no resource class, only the plain objects.
"""
