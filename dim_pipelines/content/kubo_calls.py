"""What DIM asks of a Kubo, call by call: synchronous, from any thread; `kubo` brings the threads.

How pins stand in a Kubo is told in `kubo_pins`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from dim_pipelines.content.car import encode_car
from dim_pipelines.content.kubo_pins import FRESH, GROUP, PinName, group_block, group_cids
from dim_pipelines.content.kubo_rpc import KuboRpc
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.content.verify import check_block
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import ContentError, ContentNotFound, ContentUnavailable

_UNPIN_AT_ONCE: Final = 500
_COLLECT_S: Final = 1800.0
"""How long Kubo may take for a collection; it says nothing while it marks."""

_log = logging.getLogger(__name__)


class KuboCalls:
    """Blocks and pins of one Kubo."""

    def __init__(self, rpc: KuboRpc) -> None:
        """Take the RPC to call."""
        self._rpc = rpc

    def peer_id(self) -> str:
        """Tell which peer answers.

        Raises:
            ConfigurationError: it is no Kubo.
        """
        answers: list[dict[str, Any]] = self._rpc.json("/id")
        agent = str(answers[0].get("AgentVersion", "")) if len(answers) == 1 else ""
        if not agent.startswith("kubo/") or not answers[0].get("ID"):
            raise self._rpc.not_a_kubo()
        return str(answers[0]["ID"])

    def warn_if_not_durable(self) -> None:
        """Log a warning where a loss of power may lose what Kubo has acknowledged."""
        [config] = self._rpc.json("/config/show")
        mounts = ((config.get("Datastore") or {}).get("Spec") or {}).get("mounts") or []
        if any(mount.get("type") == "flatfs" and not mount.get("sync") for mount in mounts):
            _log.warning(
                "the Kubo at %s does not sync what it stores: a loss of power may lose blocks (Datastore.Spec, sync)",
                self._rpc.address,
            )

    def has(self, cid: Cid) -> bool:
        """Tell whether this Kubo holds the block itself."""
        try:
            self._rpc.json("/block/stat", str(cid), options={"offline": "true"})
        except ContentNotFound:
            return False
        return True

    def put_group(self, blocks: Sequence[Block], pin: Pin | None) -> None:
        """Store blocks and hold them, their links aside, under `pin`, or until they are old."""
        name = _fresh() if pin is None else PinName(GROUP, pin)
        text = name.text()
        group = group_block([block.cid for block in blocks], name.pin)
        if problem := self.import_pinned([*blocks, group], group.cid):
            raise ContentUnavailable(f"the Kubo at {self._rpc.address} did not keep the blocks: {problem}")
        self._name_pin(group.cid, text)

    def pin_all(self, cid: Cid, name: str, root: Cid) -> None:
        """Pin recursively, for as long as Kubo gets on with it: a large tree takes minutes, a gap stops it for ever."""
        alone = not self._has_peers()
        done, moved = -1, time.monotonic()
        for each in self._rpc.stream("/pin/add", str(cid), options={"name": name, "progress": "true"}):
            if each.get("Pins"):
                return
            progress, now = int(each.get("Progress") or 0), time.monotonic()
            if progress != done:
                done, moved = progress, now
            elif now - moved > self._rpc.timeout_s or (alone and self._is_incomplete(cid)):
                break
        raise ContentNotFound(f"something below {root} is not in the Kubo at {self._rpc.address}, nor found by it")

    def _is_incomplete(self, cid: Cid) -> bool:
        options = {"recursive": "true", "unique": "true", "offline": "true"}
        return any(each.get("Err") for each in self._rpc.stream("/refs", str(cid), options=options))

    def import_pinned(self, blocks: Sequence[Block], root: Cid) -> str:
        """Send blocks and pin `root` in one step that Kubo's collection cannot come between.

        Returns: why the root could not be pinned; empty when it is.
        """
        answers = self._rpc.json(
            "/dag/import",
            options={"pin-roots": "true", "stats": "true"},
            body=list(encode_car(blocks, [root])),
        )
        stored = sum(int(each["Stats"]["BlockCount"]) for each in answers if "Stats" in each)
        roots = [each["Root"] for each in answers if "Root" in each]
        if stored != len(blocks) or [each["Cid"]["/"] for each in roots] != [str(root)]:
            raise ContentUnavailable(f"the Kubo at {self._rpc.address} took {stored} of {len(blocks)} blocks")
        return str(roots[0]["PinErrorMsg"])

    def _name_pin(self, cid: Cid, name: str) -> None:
        self._rpc.json("/pin/add", str(cid), options={"name": name, "timeout": self._server_timeout})

    def get(self, cid: Cid) -> bytes:
        """Read one block, verified; peers are asked only when there are any."""
        try:
            data = self._rpc.read("/block/get", str(cid), options={"offline": "true"})
        except ContentNotFound:
            if not self._has_peers():
                raise
            data = self._rpc.read("/block/get", str(cid), options={"timeout": self._server_timeout})
        return check_block(cid, data)

    def named(self, text: str) -> list[tuple[Cid, PinName]]:
        """List DIM's pins whose names contain `text`: the pinned block and its name."""
        options = {"type": "recursive", "names": "true", "name": text, "stream": "true"}
        found: list[tuple[Cid, PinName]] = []
        for each in self._rpc.json("/pin/ls", options=options):
            name = PinName.parse(str(each.get("Name", "")))
            if name is not None:
                found.append((Cid.parse(str(each["Cid"])), name))
        return found

    def adopt_unnamed(self) -> None:
        """Give groups and wrappers whose writer died before it named them a name that ends."""
        options = {"type": "recursive", "names": "true", "stream": "true"}
        name = _fresh().text()
        for each in self._rpc.json("/pin/ls", options=options):
            if not each.get("Name") and str(each["Cid"]).startswith("bafyrei"):
                block = self._rpc.read("/block/get", str(each["Cid"]), options={"offline": "true"})
                if b"dkindgdim/pin" in block or b"dkindhdim/held" in block:
                    self._name_pin(Cid.parse(str(each["Cid"])), name)

    def remove_pins(self, cids: Sequence[Cid]) -> None:
        """Drop pins by their blocks; no error where there is none."""
        for start in range(0, len(cids), _UNPIN_AT_ONCE):
            try:
                self._rpc.json("/pin/rm", *(str(cid) for cid in cids[start : start + _UNPIN_AT_ONCE]))
            except ContentError as error:
                if "not pinned" not in error.message:
                    raise
                if len(cids) > 1:  # one of them was dropped by somebody else: Kubo then drops none
                    for cid in cids[start : start + _UNPIN_AT_ONCE]:
                        self.remove_pins([cid])

    def take_out(self, group: Cid, name: PinName, cid: Cid) -> None:
        """Take one block out of a group; the rest stays held."""
        members = group_cids(self.get(group))
        if cid not in members:
            return
        if rest := [each for each in members if each != cid]:
            smaller = group_block(rest, name.pin)
            self.import_pinned([smaller], smaller.cid)
            self._name_pin(smaller.cid, name.text())
        # What leaves a pin is held as if it had just been put: work in flight may still count on it.
        self._name_pin(group, _fresh().text())

    def collect_garbage(self) -> int:
        """Let Kubo drop what no pin of anybody holds, and tell how many blocks that were."""
        dropped = self._rpc.json("/repo/gc", timeout_s=_COLLECT_S)
        failed = [each["Error"] for each in dropped if each.get("Error")]
        if failed:
            raise ContentUnavailable(f"the Kubo at {self._rpc.address} could not collect: {failed[0]}")
        return len(dropped)

    def _has_peers(self) -> bool:
        return any(each.get("Peers") for each in self._rpc.json("/swarm/peers"))

    def size(self) -> int:
        """Tell how many bytes the repository takes."""
        return sum(int(each["RepoSize"]) for each in self._rpc.json("/repo/stat", options={"size-only": "true"}))

    @property
    def _server_timeout(self) -> str:
        return f"{max(0.1, self._rpc.timeout_s * 0.9):.3f}s"


def _fresh() -> PinName:
    return PinName(FRESH, Pin("", "", time.time_ns() // 1_000_000))
