"""The command tree of `dim`, and the one place where an error becomes a line, a hint and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Final

import typer

from dim_pipelines.cli import (
    batch,
    bench,
    bench_discovery,
    demo,
    doctor,
    gc,
    kubo,
    model,
    network,
    node,
    nodes,
    orchestrator,
    up,
)
from dim_pipelines.cli.console import Exit, Screen, Trouble

_USAGE_ERROR: Final[type[BaseException]] = typer.BadParameter.__bases__[0]
"""Typer's (or click's) base of every mistake on the command line; its home has moved between versions."""

app = typer.Typer(
    name="dim",
    help="DIM: batch inference over many machines. Type `dim COMMAND --help` for one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dim {version('dim-pipelines')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Batch inference over many machines."""


app.command("infer")(batch.infer)
app.command("submit")(batch.submit)
app.command("resume")(batch.resume)
app.command("up")(up.up)
app.add_typer(demo.app, name="demo")
app.add_typer(node.app, name="node")
app.add_typer(nodes.app, name="nodes")
app.add_typer(model.app, name="model")
app.add_typer(network.app, name="network")
app.add_typer(kubo.app, name="kubo")
app.add_typer(orchestrator.app, name="orchestrator")
app.command("gc")(gc.gc)
app.command("doctor")(doctor.doctor)
bench.app.command("discovery")(bench_discovery.discovery)
app.add_typer(bench.app, name="bench")


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; nothing but `SystemExit` of a second signal leaves it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it logs each stranger's handshake; DIM counts refusals itself
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    screen = Screen("--json" in own, "--debug" in own)
    with _terminate_like_interrupt():
        return _run(arguments, screen)


def _run(arguments: list[str], screen: Screen) -> int:
    try:
        code = app(arguments, prog_name="dim", standalone_mode=False)
    except _USAGE_ERROR as error:
        return _usage(screen, error)
    except BrokenPipeError:
        # The reader of our output has gone: say nothing, and keep the interpreter from trying again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except (KeyboardInterrupt, typer.Abort):
        return screen.trouble(KeyboardInterrupt())
    except Exception as error:
        return screen.trouble(error)
    if code == Exit.INTERRUPTED:  # Typer has made this of a KeyboardInterrupt
        return screen.trouble(KeyboardInterrupt())
    return int(code) if isinstance(code, int) else Exit.DONE


def _usage(screen: Screen, error: BaseException) -> Exit:
    describe = getattr(error, "format_message", None)
    context = getattr(error, "ctx", None)
    message = " ".join((describe() if describe else str(error)).split())
    command = context.command_path if context is not None else "dim"
    if not message:  # no arguments at all: the help was printed
        return Exit.USAGE
    screen.report(Trouble("usage", message[:1].lower() + message[1:], f"{command} --help", Exit.USAGE))
    return Exit.USAGE


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command the way Ctrl-C does; a command with a way of its own replaces this."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # asyncio.run has a handler of its own for SIGINT that cancels the running task; use what stands there.
        standing = signal.getsignal(signal.SIGINT)
        if callable(standing):
            standing(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # a program that embeds the command line keeps its own signals
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
