"""A reader of pickles that cannot run code: an interpreter of the opcodes that data needs, with bounds on everything.

Python's own unpickler calls whatever the file names. This one knows the globals in `allowed.py`, which become inert
records, and refuses every other by name. It never falls back to `pickle.load` or `torch.load`.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distillkit.models.foreign.allowed import ALLOWED, Allowed, NumpyType, fill, plain_key
from distillkit.models.foreign.records import Array, Instance, Refused

MOST_OPCODES = 2_000_000
"""EDM's largest network takes a few hundred thousand; two million take seconds."""
MOST_ARGUMENTS = 16
"""Of a call: they are copied, at no cost to a file that takes them from its memo."""

PUSHED_AS_READ = frozenset(
    ("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BINBYTES", "BINBYTES8",
     "SHORT_BINBYTES", "BYTEARRAY8")
)  # fmt: skip
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


Stream = io.BytesIO | mmap.mmap
"""A byte stream whose reads are cut at its end: a plain file would allocate whatever length it is asked for."""


@dataclass
class Budget:
    """What a file and everything nested in it may still use: opcodes, characters copied into bytes, and bytes of nested
    archives, which a file could ask to read again and again."""

    opcodes: int = MOST_OPCODES
    copied: int = 2**20
    nested: int = 0


Persistent = Callable[[Any], Any]
Nested = Callable[[bytes], Any]


def _absent(what: str) -> Callable[[Any], Any]:
    def refuse(value: Any) -> Any:
        raise Refused(f"it holds {what} where none can be")

    return refuse


NO_PERSISTENT_ID, NO_NESTED_ARCHIVE = _absent("a persistent id"), _absent("a nested archive")


def read_pickle(
    stream: Stream,
    *,
    persistent: Persistent = NO_PERSISTENT_ID,
    nested: Nested = NO_NESTED_ARCHIVE,
    budget: Budget | None = None,
) -> Any:
    """Interpret one pickle from the stream, which is left just after it.

    Args:
        persistent: what a persistent id means (torch's storages).
        nested: what the bytes of a nested torch archive mean.
        budget: shared with the readers of what this one is nested in.

    Raises:
        Refused: for anything but plain values and the globals in `allowed.py`; names the global.
    """
    try:
        return _Machine(persistent, nested, budget or Budget()).run(stream)
    except Refused:
        raise
    except RecursionError as error:
        raise Refused("it is nested too deeply") from error
    except Exception as error:  # torn opcodes, empty stacks, wrong types: whatever the bytes make happen
        raise Refused(f"it is damaged or no pickle ({str(error)[:120] or type(error).__name__})") from error


class _Machine:
    """The pickle machine: a stack, saved stacks for MARK, and a memo. Dispatch is by opcode name."""

    def __init__(self, persistent: Persistent, nested: Nested, budget: Budget) -> None:
        self.persistent, self.nested, self.budget = persistent, nested, budget
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it only reads
            self.budget.opcodes -= 1
            if self.budget.opcodes < 0:
                raise Refused(f"it has more than {MOST_OPCODES:,} opcodes")
            name = opcode.name
            if name == "STOP":
                if len(self.stack) != 1 or self.marked:
                    raise Refused("it is damaged: it does not end with one value")
                return self.stack[0]
            if name in PUSHED_AS_READ:
                if isinstance(argument, int) and argument.bit_length() > 128:
                    raise Refused("it holds an integer of more than 128 bits")
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            else:
                handler = getattr(self, f"on_{name.lower()}", None)
                if handler is None:
                    raise Refused(f"it uses the opcode {name}, which no file of weights needs")
                handler(argument)
        raise Refused("it is damaged: it has no end")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def on_proto(self, version: int) -> None:
        if version > 5:
            raise Refused(f"it has pickle protocol {version}; 5 is the newest known")

    def on_frame(self, size: int) -> None: ...

    def on_mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def on_pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def on_pop_mark(self, _: Any) -> None:
        self.pop_mark()

    def on_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def on_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    on_binget = on_long_binget = on_get

    def on_tuple(self, _: Any) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def on_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def on_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def on_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def on_list(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def on_dict(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(dict(_pairs(items)))

    def on_frozenset(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(map(plain_key, items)))

    def on_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._container(list).append(value)

    def on_appends(self, _: Any) -> None:
        items = self.pop_mark()
        self._container(list).extend(items)

    def on_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._container(dict)[plain_key(key)] = value

    def on_setitems(self, _: Any) -> None:
        items = self.pop_mark()
        self._container(dict).update(_pairs(items))

    def on_additems(self, _: Any) -> None:
        items = self.pop_mark()
        self._container(set).update(map(plain_key, items))

    def _container(self, kind: type[Any]) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"items are put into a {type(self.stack[-1]).__name__} as into a {kind.__name__}")
        return self.stack[-1]

    def on_global(self, words: str) -> None:
        self._find(*words.split(" ", 1))

    def on_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused("it names a global by something else than text")
        self._find(module, name)

    def _find(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full == "torch.storage._load_from_bytes":
            self.stack.append(Allowed(full, self._nested))
        elif full == "_codecs.encode":
            self.stack.append(Allowed(full, self._latin1))
        elif full in ALLOWED:
            self.stack.append(ALLOWED[full])
        else:
            raise Refused(f"it asks for the global {full[:120]!r}, which no file of weights needs")

    def _nested(self, data: Any) -> Any:
        if not isinstance(data, bytes):
            raise Refused("a nested archive is malformed")
        self.budget.nested -= len(data)
        if self.nested is not NO_NESTED_ARCHIVE and self.budget.nested < 0:
            raise Refused("its nested archives are more than it holds")
        return self.nested(data)

    def _latin1(self, text: Any, encoding: Any) -> bytes:
        """How protocol 2 writes bytes."""
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("_codecs.encode is used for something else than bytes")
        self.budget.copied -= len(text)
        if self.budget.copied < 0:
            raise Refused("it makes more bytes than it holds")
        return text.encode("latin-1")

    def on_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self._make(function, "call", arguments)

    def on_newobj(self, _: Any) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self._make(kind, "new", arguments)

    def _make(self, what: Any, how: str, arguments: Any) -> None:
        make = getattr(what, how) if isinstance(what, Allowed) else None
        if isinstance(arguments, tuple) and len(arguments) > MOST_ARGUMENTS:
            raise Refused(f"it makes an object of {len(arguments):,} arguments")
        if make is None or not isinstance(arguments, tuple):
            named = what.name if isinstance(what, Allowed) else f"a {type(what).__name__}"
            raise Refused(f"it makes an object of {named}, which is not for that")
        self.stack.append(make(*arguments))

    def on_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Instance) and isinstance(state, dict):
            if target.state:
                raise Refused(f"it gives attributes to a {target.class_name} twice")
            target.state = state
        elif isinstance(target, NumpyType):
            target.build(state)
        elif isinstance(target, Array):
            fill(target, state)
        elif not (type(target) is dict and isinstance(state, dict)):  # a state dict's version notes: not needed
            raise Refused(f"it gives attributes to a {type(target).__name__}")

    def on_persid(self, text: Any) -> None:
        self.stack.append(self.persistent(text))

    def on_binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return [(plain_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]
