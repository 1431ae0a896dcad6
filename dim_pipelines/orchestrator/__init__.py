"""Floor 5: accepts batches and keeps track of them: the table of batches, later the service around it.

What runs a batch stands below (`dispatch`) or above (Dagster's assets); both know only the row's epoch.
"""
