"""What `dim doctor` finds: the answer to one question, and how questions are asked so that none spoils the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from dim_pipelines.cli.console import explain

Verdict = Literal["good", "warning", "bad", "unknown"]
"""`unknown`: it could not be asked here, and that is no fault."""

QUESTION_S: Final = 15.0
"""How long one question may take, in seconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question.

    Attributes:
        name: what was asked, a word or two.
        verdict: how it stands.
        text: one line.
        hint: what to do; empty where nothing needs to be done.
        details: further lines.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""
    details: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Give what `--json` prints."""
        return asdict(self)


Question = Callable[[], Awaitable[Finding]]


async def ask_all(questions: Mapping[str, Question], timeout_s: float = QUESTION_S) -> list[Finding]:
    """Ask all questions at once and give the answers in their order; one that fails or hangs is an answer too."""
    return list(await asyncio.gather(*(_ask(name, question, timeout_s) for name, question in questions.items())))


async def _ask(name: str, question: Question, timeout_s: float) -> Finding:
    try:
        async with asyncio.timeout(timeout_s):
            return await question()
    except TimeoutError:
        return Finding(name, "bad", f"no answer within {timeout_s:g} s")
    except Exception as error:  # whatever is wrong is what the person asked for
        trouble = explain(error)
        return Finding(name, "bad", trouble.message, trouble.hint)
