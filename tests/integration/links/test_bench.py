"""The measurement itself works; what it says is for people to read."""

from __future__ import annotations

from dim_pipelines.cli.bench_links import measure_links


async def test_both_ways_are_measured_with_real_processes() -> None:
    speeds = await measure_links(8)
    assert speeds.direct > 0 and speeds.attached > 0
    assert speeds.direct_call_s > 0 and speeds.attached_call_s > 0
    print(f"direct {speeds.direct:.0f} MB/s, attached {speeds.attached:.0f} MB/s")
