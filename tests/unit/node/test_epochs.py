from __future__ import annotations

import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.domain.grant import Grant
from dim_pipelines.errors import ConfigurationError, NodeBusy, StaleEpoch
from dim_pipelines.node.epochs import REMEMBERED_MS, Epochs


def grant(batch: str, epoch: int, not_after_ms: int = 1000, network: str = "local") -> Grant:
    return Grant(network=network, batch=batch, epoch=epoch, owner="o", holder=bytes(32), not_after_ms=not_after_ms)


claims = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=20
)


@settings(max_examples=25)
@given(claims)
def test_only_the_highest_epoch_is_taken_across_restarts(items: list[tuple[str, int, int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        epochs = Epochs(Path(folder) / "epochs.db")
        now, highest, ends = 0, dict[str, int](), dict[str, int]()
        for batch, epoch, days, restart in items:
            now += days * REMEMBERED_MS
            for key in [key for key, end in ends.items() if end + REMEMBERED_MS <= now]:
                del highest[key], ends[key]
            if restart:
                epochs.close()
                epochs = Epochs(Path(folder) / "epochs.db")
            given_ = grant(batch, epoch, now + 1000)
            if epoch < highest.get(batch, 0):
                with pytest.raises(StaleEpoch, match=f"epoch {highest[batch]}"):
                    epochs.claim(given_, now)
            else:
                epochs.claim(given_, now)
            highest[batch] = max(epoch, highest.get(batch, 0))
            ends[batch] = now + 1000
        epochs.close()


def test_an_epoch_is_kept_a_day_after_its_grant_has_ended(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "epochs.db")
    epochs.claim(grant("a", 5, not_after_ms=1000), 0)
    with pytest.raises(StaleEpoch):
        epochs.claim(grant("a", 4, not_after_ms=1000), 1000 + REMEMBERED_MS - 1)
    epochs.claim(grant("a", 4, not_after_ms=1000), 1000 + REMEMBERED_MS)
    epochs.claim(grant("a", 1, network="other"), 0)
    epochs.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "epochs.db"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(ConfigurationError, match=r"epochs\.db"):
        Epochs(path)


def test_a_number_beyond_sqlites_is_refused(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "epochs.db")
    with pytest.raises(ConfigurationError, match="cannot store"):
        epochs.claim(grant("a", 1 << 70), 0)
    epochs.claim(grant("a", 1), 0)
    epochs.close()


def test_claims_of_many_threads_take_turns(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "epochs.db")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: epochs.claim(grant(f"b{n}", n), 0), range(10, 50)))
    for n in range(10, 50):
        with pytest.raises(StaleEpoch, match=f"epoch {n},"):
            epochs.claim(grant(f"b{n}", 1), 0)
    epochs.close()


def test_a_held_file_is_busy_and_not_final(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "epochs.db")
    epochs._database.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / "epochs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(NodeBusy, match="cannot store the epoch of batch a") as caught:
        epochs.claim(grant("a", 1), 0)
    assert caught.value.retryable
    other.execute("ROLLBACK")
    other.close()
    epochs.claim(grant("a", 1), 0)
    epochs.close()
