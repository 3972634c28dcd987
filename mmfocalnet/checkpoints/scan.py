"""Scan a checkpoint's pickle before PyTorch builds objects from it.

PyTorch's restricted unpickler runs no code, but a small file can make it use unlimited memory or
time. This module executes the same instructions with placeholders that only record nesting depth
and size of the objects.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO

# Training checkpoints nest about twelve containers.
_MAX_DEPTH = 100
# Building the objects may copy this many times the bytes of the pickle, plus a constant.
_MAX_COPIES = 64
_SLACK = 2**20
# Objects on the stack; picklers add a thousand at a time to a container.
_MAX_STACK = 2**16
# Maximum size in bytes of a tuple used as a key.
_MAX_KEY = 1000


class HostilePickleError(ValueError):
    """A pickle that needs too much memory or time, or instructions that no checkpoint needs."""


class _Placeholder:
    """Placeholder for an object: its nesting depth and approximate size of a copy in bytes.

    A tuple that occurs several times in another tuple counts each time.
    """

    __slots__ = ('depth', 'parts', 'size', 'value')

    def __init__(
        self, value: Any = None, size: int = 8, parts: tuple[_Placeholder, ...] | None = None
    ):
        self.value = value
        self.parts = parts  # of tuples
        self.depth = 1 + max((part.depth for part in parts or ()), default=0)
        self.size = size + sum(part.size for part in parts or ())
        _check_depth(self)

    def add(self, items: list[_Placeholder]) -> None:
        """Add items to a list or dict. Tuples count with their parts: a set hashes them."""
        self.size += sum(8 if item.parts is None else 8 + item.size for item in items)
        self.depth = max([self.depth, *(1 + item.depth for item in items)])
        _check_depth(self)


def check_pickle(file: BinaryIO) -> None:
    """Scan one pickle, from the current position of the file to the end of the pickle.

    Args:
        file: The file; its position is moved to the end of the pickle.

    Raises:
        HostilePickleError: If it nests too deeply, copies far more than its size, or uses a key,
            an allocation or an instruction that no checkpoint needs.
        ValueError: If it is damaged; also IndexError and KeyError.
    """
    _Machine().run(file)


class _Machine:
    """The stack and the memo of an unpickler."""

    def __init__(self) -> None:
        self.stack: list[_Placeholder] = []
        self.marks: list[list[_Placeholder]] = []
        self.memo: dict[int, _Placeholder] = {}
        self.copied = 0

    def run(self, file: BinaryIO) -> None:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name in _CONSTANTS:
                size = len(argument) if isinstance(argument, (str, bytes)) else 8
                self.stack.append(_Placeholder(argument, size))
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise HostilePickleError(f'the pickle has the instruction {opcode.name}')
            if self.copied > _MAX_COPIES * (position or 0) + _SLACK:
                raise HostilePickleError('the pickle copies far more than its size')
            if len(self.stack) + len(self.marks) > _MAX_STACK:
                raise HostilePickleError('the pickle puts too many objects on the stack')

    def do_nothing(self, argument: Any) -> None:
        """PROTO, STOP."""

    def name_global(self, argument: str) -> None:
        name = argument.replace(' ', '.')
        if name in ('builtins.bytearray', '__builtin__.bytearray'):
            raise HostilePickleError('the pickle creates a bytearray')
        self.stack.append(_Placeholder(name))

    def mark(self, argument: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[_Placeholder]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def make_empty(self, argument: None) -> None:
        self.stack.append(_Placeholder())

    def make_tuple(self, items: list[_Placeholder]) -> None:
        self.stack.append(_Placeholder(size=8 * len(items), parts=tuple(items)))

    def make_small_tuple(self, length: int) -> None:
        items = [self.stack.pop() for _ in range(length)]
        self.make_tuple(items[::-1])

    def pop_pair(self) -> list[_Placeholder]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def append(self, items: list[_Placeholder]) -> None:
        self.stack[-1].add(items)

    def set_items(self, items: list[_Placeholder]) -> None:
        for key in items[::2]:
            if key.depth > 2 or (key.size > _MAX_KEY and key.parts is not None):
                raise HostilePickleError('the pickle has a key of large or nested tuples')
        self.stack[-1].add(items)

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def call(self, argument: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.copied += arguments.size
        given = arguments.parts or ()
        called = [function.value]
        if function.value == _INDIRECT_CALL:
            called += [part.value for part in given[:1]]
        for name in called:
            if given and _ALLOCATING.fullmatch(str(name)):
                raise HostilePickleError(f'the pickle calls {name}')
        if _ENCODE in called and [part.value for part in given[1:]] != ['latin1']:
            raise HostilePickleError('the pickle encodes with a codec that may expand it')
        # An attribute may be a function, whose attributes `build` must not change.
        value = function.value if str(function.value).endswith('.getattr') else None
        self.stack.append(_Placeholder(value, parts=(arguments,)))

    def build(self, argument: None) -> None:
        state = self.stack.pop()
        if self.stack[-1].value is not None:
            raise HostilePickleError('the pickle changes a class or a function')
        self.copied += state.size
        self.stack[-1].add([state])

    def load_storage(self, argument: None) -> None:
        self.stack[-1] = _Placeholder()


def _check_depth(item: _Placeholder) -> None:
    if item.depth > _MAX_DEPTH:
        raise HostilePickleError(f'the pickle has containers nested more than {_MAX_DEPTH} levels')


# Calls that allocate any requested size; checkpoints rebuild tensors from their storages instead.
_ALLOCATING = re.compile(r'torch\.(\w+\.)*\w*(Tensor|Storage)|numpy\.ndarray')
# Picklers write bytes as a call of it with text and 'latin1'.
_ENCODE = '_codecs.encode'
# It calls its first argument with the third.
_INDIRECT_CALL = 'torch._tensor._rebuild_from_type_v2'
_CONSTANTS = (
    *('NONE', 'NEWFALSE', 'NEWTRUE', 'BININT', 'BININT1', 'BININT2', 'BINFLOAT', 'LONG1'),
    *('BINUNICODE', 'SHORT_BINSTRING'),
)
# All other instructions that PyTorch's restricted unpickler supports.
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    'PROTO': _Machine.do_nothing,
    'STOP': _Machine.do_nothing,
    'GLOBAL': _Machine.name_global,
    'MARK': _Machine.mark,
    'EMPTY_TUPLE': lambda machine, _: machine.make_tuple([]),
    'EMPTY_LIST': _Machine.make_empty,
    'EMPTY_DICT': _Machine.make_empty,
    'EMPTY_SET': _Machine.make_empty,
    'TUPLE': lambda machine, _: machine.make_tuple(machine.to_mark()),
    'TUPLE1': lambda machine, _: machine.make_small_tuple(1),
    'TUPLE2': lambda machine, _: machine.make_small_tuple(2),
    'TUPLE3': lambda machine, _: machine.make_small_tuple(3),
    'APPEND': lambda machine, _: machine.append([machine.stack.pop()]),
    'APPENDS': lambda machine, _: machine.append(machine.to_mark()),
    'SETITEM': lambda machine, _: machine.set_items(machine.pop_pair()),
    'SETITEMS': lambda machine, _: machine.set_items(machine.to_mark()),
    'BINGET': _Machine.get,
    'LONG_BINGET': _Machine.get,
    'BINPUT': _Machine.put,
    'LONG_BINPUT': _Machine.put,
    'REDUCE': _Machine.call,
    'NEWOBJ': _Machine.call,
    'BUILD': _Machine.build,
    'BINPERSID': _Machine.load_storage,
}
