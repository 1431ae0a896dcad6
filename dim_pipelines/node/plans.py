"""A plan made ready on a node: read, allowed, on the disk, and in a numerics class that this node has.

The order is the point. A `.pt2` is a program, so the signature of a trusted publisher is checked before a
byte of it is handed to anything that could run it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dim_pipelines.content.store import ContentStore
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.grant import Signature
from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.domain.node import numerics_class
from dim_pipelines.domain.work import Plan
from dim_pipelines.errors import DimError, Forbidden, InputError, NodeRefused
from dim_pipelines.identity.keys import format_public_key
from dim_pipelines.identity.signatures import MODEL_DOMAIN, verify
from dim_pipelines.node.model_cache import CachedModel, ModelCache, read_description

DATA_ONLY_ENGINES: Final = frozenset({"echo"})
"""Engines that run no code of a package, so that no signature is asked for."""
MAX_STEPS: Final = 64
MAX_SIGNATURES: Final = 16


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step that can be computed here.

    Attributes:
        publisher: the key whose signature let the model in; None where none was needed.
        key: names its model as the engine process knows it.
    """

    model: CachedModel
    parameters: Mapping[str, Any]
    batch_rows: int
    publisher: bytes | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Write the CID as text once: it is asked for with every task."""
        object.__setattr__(self, "key", str(self.model.cid))


class PlanReader:
    """Makes plans ready for one node."""

    def __init__(
        self,
        store: ContentStore,
        cache: ModelCache,
        publishers: Container[bytes],
        admit_licence: Callable[[str, str], None] = lambda model, licence: None,
    ) -> None:
        """Keep where things are.

        Args:
            store: where plans, models and signatures are read.
            cache: where models go.
            publishers: public keys whose programs this node loads; asked each time, for it may change.
            admit_licence: raises NodeRefused where the owner does not let in a model (its name) of a licence.
        """
        self._store = store
        self._cache = cache
        self._publishers = publishers
        self._admit_licence = admit_licence

    async def read(self, cid: Cid, numerics: Mapping[str, str]) -> tuple[str, list[ReadyStep]]:
        """Make a plan ready; give its numerics class and its steps. Every step holds its model in the cache.

        Args:
            cid: the plan's block.
            numerics: engine → numerics base class of this node.

        Raises:
            NodeRefused: an engine or a numerics class that this node has not, or a licence that its owner refuses.
            Forbidden: a program without the signature of a trusted publisher.
            InputError, ContentError: the plan or a model cannot be read.
        """
        plan = Plan.decode(await self._store.get(cid))
        if not 1 <= len(plan.steps) <= MAX_STEPS:
            raise InputError(f"a plan has 1 to {MAX_STEPS} steps, this one has {len(plan.steps)}")
        steps: list[ReadyStep] = []
        classes: list[str] = []
        try:
            for step in plan.steps:
                description, publisher = await self.allowed(step.model, step.signatures)
                base = numerics.get(description.engine)
                if base is None:
                    raise NodeRefused(f"this node has no engine {description.engine!r}")
                classes.append(numerics_class(base, description.dtype))
                if plan.numerics not in ("any", classes[-1]):
                    raise NodeRefused(
                        f"the batch is in numerics class {plan.numerics}, this node computes in {classes[-1]}"
                    )
                if not 1 <= step.batch_rows <= description.max_batch_rows:
                    raise InputError(
                        f"batch_rows is {step.batch_rows}, the model takes 1 to {description.max_batch_rows}"
                    )
                model = await self._cache.acquire(step.model, self._store)
                self._cache.vouch(step.model, step.signatures)
                steps.append(ReadyStep(model, step.parameters, step.batch_rows, publisher))
        except BaseException:
            self.release(steps)
            raise
        return classes[0], steps

    async def allowed(self, model: Cid, signatures: Sequence[Cid]) -> tuple[ModelDescription, bytes | None]:
        """Check that this node may load a model, reading its description and signatures only.

        Returns:
            The description, and the publisher's key where a signature was needed.

        Raises:
            Forbidden: no signature of a trusted publisher over a program.
            NodeRefused: the owner of the node does not take its licence.
            InputError, ContentError: it cannot be read.
        """
        description = await read_description(self._store, model)
        self._admit_licence(description.name, description.licence)
        if description.engine in DATA_ONLY_ENGINES:
            return description, None
        why = "it has no signature"
        for cid in signatures[:MAX_SIGNATURES]:
            try:
                signer = verify(Signature.decode(await self._store.get(cid)), MODEL_DOMAIN, model)
            except DimError as error:
                why = error.message
                continue
            if signer in self._publishers:
                return description, signer
            why = f"this node does not trust {format_public_key(signer)} to publish models"
        raise Forbidden(
            f"model {description.name} {model} is a program and may not run here: {why}",
            hint="dim model add signs with your key; on the node: dim node start --trust KEY",
        )

    def still_allowed(self, steps: Sequence[ReadyStep]) -> bool:
        """Tell whether the publishers that let these steps in are trusted still."""
        return all(step.publisher is None or step.publisher in self._publishers for step in steps)

    def release(self, steps: Sequence[ReadyStep]) -> None:
        """Give up the holds on the steps' models."""
        for step in steps:
            self._cache.release(step.model.cid)
