"""Floor 1: who computes what and when: pure functions of (state, now), with no asyncio, gRPC or Dagster."""
