"""The command line. One small file per command; no logic of its own, and no torch before a command needs it."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from distillkit import __version__
from distillkit.cli import (
    bench,
    cache,
    check,
    compare,
    ema,
    evaluate,
    export,
    methods,
    new_method,
    pairs,
    plugins,
    protocols,
    reference,
    run,
    sample,
    students,
    teachers,
)
from distillkit.cli.spelling import advice
from distillkit.errors import DistillkitError, Interrupted, is_out_of_memory
from distillkit.text import printable, redacted


class Commands(TyperGroup):
    """The commands in the order in which people come to need them."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [
            "run",
            "sample",
            "evaluate",
            "compare",
            "bench",
            "export",
            "methods",
            "teachers",
            "students",
            "protocols",
        ]
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


PATIENCE = 3.0
"""Seconds of silence before a command says that it is still loading."""

app = typer.Typer(
    name="distillkit",
    cls=Commands,
    help="Turn a diffusion model into a one-step generator, with any method, and compare the methods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Panels need rich.markdown and pygments, which would double the time to the first help screen.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: distillkit run dmd   (no GPU, no download, a minute or two)",
)
app.add_typer(run.app, name="run")
app.command("sample")(sample.sample)
app.command("export")(export.export)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("ema")(ema.ema)
app.command("bench")(bench.bench)
app.add_typer(methods.app, name="methods")
app.command("check")(check.check)
app.command("new-method")(new_method.new_method)
app.command("plugins")(plugins.plugins)
app.add_typer(teachers.app, name="teachers")
app.add_typer(students.app, name="students")
app.add_typer(protocols.app, name="protocols")
app.add_typer(reference.app, name="reference")
app.add_typer(pairs.app, name="pairs")
app.command("cache")(cache.cache)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"distillkit {__version__}")
        raise typer.Exit


BETWEEN_LIBRARIES = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Where torchao's import, which diffusers does wherever it is installed, makes libraries complain of one another."""


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debugging messages.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option("--plugin", metavar="FILE", help="Take a Python file as a plugin, as if it were installed."),
    ] = None,
) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
        handler.addFilter(_unsaid)
    if debug:
        logging.getLogger("distillkit").setLevel(logging.DEBUG)
    else:
        for name in BETWEEN_LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)
    for file in plugin or ():
        from distillkit.registry import load_file

        load_file(file)


class _Printable(logging.Formatter):
    """No text of a file's or a server's steers the terminal, and no password gets into a log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


def _unsaid(record: logging.LogRecord) -> bool:
    """Whether no library has a handler of its own for this message, which would then be shown twice."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        if logger.handlers:
            return False
        logger = logger.parent if logger.propagate else None
    return True


def main() -> None:
    """Run the command line; every expected failure is one message on stderr and an exit code."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter shows a question mark; it does not end a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    loading = threading.Timer(PATIENCE, _say_what_loads)
    loading.daemon = True
    loading.start()
    try:
        code: Any = app(standalone_mode=False)
    except DistillkitError as error:
        if isinstance(error, Interrupted):
            # A second signal that comes while the process ends must not change its exit code.
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.SIG_IGN)
        fail(str(error) + memory_advice(error.__cause__), error.exit_code, arguments)
    except KeyboardInterrupt:
        fail("interrupted", 130, arguments)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        _fail_parsing(error, arguments)
        if hint := memory_advice(error):
            what = next(iter(str(error).splitlines()), "")
            fail(f"out of memory{f': {what}' if what else ''}{hint}", 1, arguments)
        if isinstance(error, OSError) and error.errno:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", 1, arguments)
        fail(
            f"{type(error).__name__}: {error}\nThis is a fault of distillkit or of a plugin. "
            "Run again with `distillkit --debug ...` for the traceback.",
            1,
            arguments,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail_parsing(error: Exception, arguments: list[str]) -> None:
    """End with the parser's own errors (unknown option, bad value), which know their message and exit code; other
    errors pass."""
    message = getattr(error, "format_message", None)
    if message is None:
        return
    if type(error).__name__ == "NoArgsIsHelpError":
        # A group of commands by itself shows its help, which is no error's message.
        typer.echo(message(), err=True)
        sys.exit(2)
    hint = advice(getattr(error, "option_name", None))
    said = str(message()).replace("Value error, ", "", 1)
    fail(f"{said}{hint}", getattr(error, "exit_code", 2), arguments)


def _say_what_loads() -> None:
    """Nothing can be shown before PyTorch is there, which takes long from a cold or busy disk."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(spec, "_initializing", False) and sys.stderr.isatty():
        print("distillkit: loading PyTorch, which takes longest the first time", file=sys.stderr)  # noqa: T201


def memory_advice(error: BaseException | None) -> str:
    """What helps against running out of memory; empty for any other error."""
    if not is_out_of_memory(error):
        return ""
    return (
        "\nThat is too little memory. The last checkpoint is kept. Lower --batch-per-device (the total batch stays), "
        "or use --gradient-checkpointing or --precision bf16; --dry-run shows what holds how much."
    )


def fail(message: str, code: int, arguments: list[str]) -> None:
    if "--debug" in arguments:
        traceback.print_exc()
    if _speaks():
        print(f"distillkit: {printable(redacted(message))}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _speaks() -> bool:
    """Whether this process says why the job failed: one of several does, the first to fail."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
        return True
    from distillkit.engine.watch import first_to_fail

    return first_to_fail()
