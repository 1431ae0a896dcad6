"""The data path of a batch: inputs to a node ahead of their tasks, outputs back, checked, stored and journaled.

A node that shares the run worker's swarm reads and writes there, and nothing is copied. For the others
blocks travel over the node's BlockService, batched, and only those it lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import pyarrow as pa

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.content.unixfs import read_bytes, tree_blocks
from dim_pipelines.dispatch.journal import JournalWriter
from dim_pipelines.dispatch.node_client import MESSAGE_BYTES, NodeClient
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES
from dim_pipelines.domain.events import ShardDone, TaskDone
from dim_pipelines.errors import (
    ContentMismatch,
    ContentNotFound,
    DimError,
    InputError,
    NodeError,
    NodeRefused,
    NodeUnreachable,
)
from dim_pipelines.scheduling.retry import Failure

STORE_BYTES: Final = 8 << 20
"""Bytes of outputs that go into the store in one call, at most (one larger output goes alone)."""


Accepted = Callable[[ShardDone], None]
"""Is told of a shard that is done, in the loop's thread; must not block."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An output as it came: its blocks, and the bytes of the shard that they make."""

    blocks: list[Block]
    data: bytes


class DataPath(Protocol):
    """How a batch's data gets to nodes and back. `BlockTransfer` is the real one."""

    async def prepare(self, client: NodeClient, shared: bool) -> None:
        """Bring what every task needs (plan, models, signatures) to a node.

        Raises:
            NodeError: the node cannot take it.
            ContentError: the run worker's own store failed.
        """
        ...

    async def find_local(self, client: NodeClient, shards: Sequence[int]) -> list[int]:
        """Tell which of these shards have their input at the node already."""
        ...

    async def bring(self, client: NodeClient, shards: Sequence[int], lacking: bool) -> None:
        """Bring the input of shards to a node that shares no swarm; `lacking`: it is known to have none of it.

        Raises: as `prepare`.
        """
        ...

    async def accept(
        self, client: NodeClient, shared: bool, node: str, outcomes: Sequence[TaskDone], accepted: Accepted
    ) -> list[Failure | None]:
        """Fetch the outputs of tasks, check them, store and journal them.

        `accepted` is told of each shard that is done, in the journal's order.

        Returns:
            For each outcome None where its shard is done now, else why the node's word was not good.

        Raises:
            ContentError: the run worker's own store failed.
        """
        ...


class BlockTransfer:
    """The data path over `BlockService`, or over a common swarm."""

    def __init__(
        self,
        store: ContentStore,
        inputs: ShardInputs,
        journal: JournalWriter,
        *,
        roots: Sequence[Cid],
        pin: Pin,
        schema: pa.Schema | None = None,
    ) -> None:
        """Make the data path of one batch.

        Args:
            store: the run worker's store.
            inputs: the input shards.
            journal: takes accepted outcomes.
            roots: what every node needs: the plan's block, models, signatures.
            pin: holds every accepted output.
            schema: the outputs' schema where it is known; else that of the first output.
        """
        self._store, self._inputs, self._journal, self._pin = store, inputs, journal, pin
        self._roots = tuple(roots)
        self._common: list[Cid] | None = None
        self.schema = schema

    async def prepare(self, client: NodeClient, shared: bool) -> None:
        """Bring plan, models and signatures: see `DataPath`."""
        if shared:
            return
        if self._common is None:
            common: dict[Cid, None] = {}
            for root in self._roots:
                if root.codec == RAW or root == self._roots[0]:
                    common[root] = None
                    continue
                async for cid in tree_blocks(self._store, root):
                    common[cid] = None
            self._common = list(common)
        await self._push(client, self._common)

    async def find_local(self, client: NodeClient, shards: Sequence[int]) -> list[int]:
        """Ask the node for the shards' roots: see `DataPath`."""
        with _of_node():
            held = await client.have([self._inputs.cid(shard) for shard in shards])
        return [shard for shard in shards if self._inputs.cid(shard) in held]

    async def bring(self, client: NodeClient, shards: Sequence[int], lacking: bool) -> None:
        """Bring inputs: see `DataPath`."""
        cids: dict[Cid, None] = {}
        for shard in shards:
            root = self._inputs.cid(shard)
            if root.codec == RAW:
                cids[root] = None
            else:
                async for cid in tree_blocks(self._store, root):
                    cids[cid] = None
        await self._push(client, list(cids), lacking and all(cid.codec == RAW for cid in cids))

    async def accept(
        self, client: NodeClient, shared: bool, node: str, outcomes: Sequence[TaskDone], accepted: Accepted
    ) -> list[Failure | None]:
        """Fetch, check, store, journal: see `DataPath`."""
        verdicts: list[Failure | None] = [None] * len(outcomes)
        batch: list[tuple[int, Fetched]] = []
        size = 0
        async with aclosing(self._fetch(client, shared, outcomes)) as outputs:
            async for position, fetched in outputs:
                if isinstance(fetched, Failure):
                    verdicts[position] = fetched
                    continue
                batch.append((position, fetched))
                size += len(fetched.data)
                if size >= STORE_BYTES:
                    await self._keep(node, outcomes, batch, verdicts, accepted)
                    batch, size = [], 0
        if batch:
            await self._keep(node, outcomes, batch, verdicts, accepted)
        return verdicts

    async def _keep(
        self,
        node: str,
        outcomes: Sequence[TaskDone],
        batch: Sequence[tuple[int, Fetched]],
        verdicts: list[Failure | None],
        accepted: Accepted,
    ) -> None:
        checked = await asyncio.to_thread(self._check_all, [(outcomes[i], fetched.data) for i, fetched in batch])
        good: list[tuple[TaskDone, list[Block]]] = []
        for (position, fetched), verdict in zip(batch, checked, strict=True):
            verdicts[position] = verdict
            if verdict is None:
                good.append((outcomes[position], fetched.blocks))
        if not good:
            return
        # one output may come twice in a batch: the store takes a block once
        unique = {block.cid: block for _, blocks in good for block in blocks}
        await self._store.put(list(unique.values()), pin=self._pin)
        done = [ShardDone(each.shard, each.output, each.rows, node, each.usage) for each, _ in good]
        await self._journal.append(done)
        for outcome in done:
            accepted(outcome)

    def _check_all(self, items: Sequence[tuple[TaskDone, bytes]]) -> list[Failure | None]:
        return [self._check(outcome, data) for outcome, data in items]

    def _check(self, outcome: TaskDone, data: bytes) -> Failure | None:
        """Decode an output, count its rows and compare its columns with the other shards'."""
        wanted = self._inputs.rows(outcome.shard)
        try:
            batch = decode_shard(data)
        except InputError as error:
            return Failure("content_mismatch", f"the output of shard {outcome.shard} is {error.message}")
        if batch.num_rows != wanted or outcome.rows != wanted:
            return Failure(
                "content_mismatch",
                f"the output of shard {outcome.shard} has {batch.num_rows} rows and says {outcome.rows}, "
                f"the input has {wanted}",
            )
        if self.schema is None:
            self.schema = batch.schema
        elif not batch.schema.equals(self.schema):
            return Failure(
                "content_mismatch",
                f"the output of shard {outcome.shard} has columns {_columns(batch.schema)}, "
                f"others have {_columns(self.schema)}",
            )
        return None

    async def _fetch(
        self, client: NodeClient, shared: bool, outcomes: Sequence[TaskDone]
    ) -> AsyncGenerator[tuple[int, Fetched | Failure], None]:
        # over a swarm only what is missing or wrong is the node's fault: the rest is this machine's own store
        faults = (ContentNotFound, ContentMismatch) if shared else (DimError,)
        source: NodeClient | ContentStore = self._store if shared else client
        plain = [position for position, outcome in enumerate(outcomes) if outcome.output.codec == RAW]
        while plain:
            taken = 0
            try:
                async for block in _read(source, [outcomes[position].output for position in plain]):
                    yield plain[taken], Fetched([block], block.data)
                    taken += 1
            except faults as error:
                gone = isinstance(error, NodeUnreachable)  # asking again for each would take for ever
                failed = plain[taken:] if gone else plain[taken : taken + 1]
                for position in failed:
                    yield position, _failure(outcomes[position], error)
                taken += len(failed)
            plain = plain[taken:]
        for position, outcome in enumerate(outcomes):
            if outcome.output.codec == RAW:
                continue
            reader = _Remembering(source)
            try:
                data = await read_bytes(reader, outcome.output, limit=MAX_SHARD_BYTES)
            except (*faults, InputError) as error:
                yield position, _failure(outcome, error)
            else:
                yield position, Fetched(reader.blocks, data)

    async def _push(self, client: NodeClient, cids: list[Cid], lacking: bool = False) -> None:
        held: frozenset[Cid] = frozenset()
        if not lacking:
            with _of_node():
                held = await client.have(cids)
        batch: list[Block] = []
        size = 0
        async for block in self._store.get_many([cid for cid in cids if cid not in held]):
            batch.append(block)
            size += len(block.data)
            if size >= MESSAGE_BYTES:
                with _of_node():
                    await client.put(batch)
                batch, size = [], 0
        if batch:
            with _of_node():
                await client.put(batch)


class _Remembering(MemoryContentStore):
    """Reads through to a node or a store, and keeps each block once."""

    def __init__(self, source: NodeClient | ContentStore) -> None:
        super().__init__()
        self._source = source
        self._seen: dict[Cid, Block] = {}

    @property
    def blocks(self) -> list[Block]:
        return list(self._seen.values())

    async def get(self, cid: Cid) -> bytes:
        if cid not in self._seen:
            async for block in _read(self._source, [cid]):
                self._seen[cid] = block
        return self._seen[cid].data

    async def get_many(self, cids: Sequence[Cid]) -> AsyncIterator[Block]:
        async for block in _read(self._source, [cid for cid in dict.fromkeys(cids) if cid not in self._seen]):
            self._seen[block.cid] = block
        for cid in cids:
            yield self._seen[cid]


def _read(source: NodeClient | ContentStore, cids: Sequence[Cid]) -> AsyncIterator[Block]:
    return source.get(cids) if isinstance(source, NodeClient) else source.get_many(cids)


@contextmanager
def _of_node() -> Iterator[None]:
    """Make every error inside a NodeError, so that it is not taken for one of the run worker's own store."""
    try:
        yield
    except NodeError:
        raise
    except DimError as error:
        kind = NodeUnreachable if error.retryable else NodeRefused
        raise kind(f"it cannot take blocks: {error.message}", hint=error.hint) from error


def _failure(outcome: TaskDone, error: DimError) -> Failure:
    code = "content_mismatch" if isinstance(error, InputError) else error.code
    return Failure(code, f"the output of shard {outcome.shard}: {error.message}")


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
