"""Looking through a checkpoint's pickle before PyTorch builds anything of it.

PyTorch's own restricted unpickler runs no code, but lets a small file ask for any amount of memory
or time. Here the same instructions are followed with stand-ins that only say how deep and how long
the real objects would be.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO

# Training checkpoints nest a dozen containers.
_DEPTH = 100
# What is copied when objects are made is about what the pickle holds.
_COPIES = 64
_SLACK = 2**20
# Objects that wait to be put into a container; picklers put a thousand at a time.
_WAITING = 2**16
# Numbers and short tuples of them are keys; sets hold little else.
_KEY = 1000


class HostilePickleError(ValueError):
    """A pickle that asks for more than its length can justify, or for what no checkpoint needs."""


class _Thing:
    """Stand-in for an object: how deep it nests, and about how many bytes a copy of it takes.

    Of a tuple that holds another tuple many times over the copy counts each time.
    """

    __slots__ = ('depth', 'parts', 'size', 'value')

    def __init__(self, value: Any = None, size: int = 8, parts: tuple[_Thing, ...] | None = None):
        self.value = value
        self.parts = parts  # of tuples, which can be keys
        self.depth = 1 + max((part.depth for part in parts or ()), default=0)
        self.size = size + sum(part.size for part in parts or ())
        _check_depth(self)

    def add(self, things: list[_Thing]) -> None:
        """Put things into a list or dict, which a set may be made of: that hashes its tuples."""
        self.size += sum(8 if thing.parts is None else 8 + thing.size for thing in things)
        self.depth = max([self.depth, *(1 + thing.depth for thing in things)])
        _check_depth(self)


def check_pickle(file: BinaryIO) -> None:
    """Follow one pickle from where the file stands to its end.

    Args:
        file: The pickle; it is left behind its end.

    Raises:
        HostilePickleError: If it nests too deep, copies more than it holds, or uses a key, an
            allocation or an instruction that no checkpoint needs.
        ValueError: If it is damaged; IndexError and KeyError as well.
    """
    _Machine().run(file)


class _Machine:
    """The stack and the memo of an unpickler."""

    def __init__(self) -> None:
        self.stack: list[_Thing] = []
        self.marks: list[list[_Thing]] = []
        self.memo: dict[int, _Thing] = {}
        self.copied = 0

    def run(self, file: BinaryIO) -> None:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name in _CONSTANTS:
                size = len(argument) if isinstance(argument, (str, bytes)) else 8
                self.stack.append(_Thing(argument, size))
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise HostilePickleError(f'instruction {opcode.name}')
            if self.copied > _COPIES * (position or 0) + _SLACK:
                raise HostilePickleError('it copies more than it holds')
            if len(self.stack) + len(self.marks) > _WAITING:
                raise HostilePickleError('more objects than one container takes')

    def do_nothing(self, argument: Any) -> None:
        """PROTO, STOP."""

    def name_global(self, argument: str) -> None:
        name = argument.replace(' ', '.')
        if name in ('builtins.bytearray', '__builtin__.bytearray'):
            raise HostilePickleError('a bytearray')
        self.stack.append(_Thing(name))

    def mark(self, argument: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[_Thing]:
        things, self.stack = self.stack, self.marks.pop()
        return things

    def make_empty(self, argument: None) -> None:
        self.stack.append(_Thing())

    def make_tuple(self, things: list[_Thing]) -> None:
        self.stack.append(_Thing(size=8 * len(things), parts=tuple(things)))

    def make_small_tuple(self, length: int) -> None:
        things = [self.stack.pop() for _ in range(length)]
        self.make_tuple(things[::-1])

    def pop_pair(self) -> list[_Thing]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def append(self, things: list[_Thing]) -> None:
        self.stack[-1].add(things)

    def set_items(self, things: list[_Thing]) -> None:
        for key in things[::2]:
            if key.depth > 2 or (key.size > _KEY and key.parts is not None):
                raise HostilePickleError('a key of nested tuples')
        self.stack[-1].add(things)

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def call(self, argument: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.copied += arguments.size
        given = arguments.parts or ()
        called = [function.value]
        if function.value == _CALLING_ANOTHER:
            called += [part.value for part in given[:1]]
        for name in called:
            if given and _ALLOCATING.fullmatch(str(name)):
                raise HostilePickleError(f'a call of {name}')
        # An attribute may be a function, of which `build` would change the parts.
        value = function.value if str(function.value).endswith('.getattr') else None
        self.stack.append(_Thing(value, parts=(arguments,)))

    def build(self, argument: None) -> None:
        state = self.stack.pop()
        if self.stack[-1].value is not None:
            raise HostilePickleError('it changes a class or a function')
        self.copied += state.size
        self.stack[-1].add([state])

    def load_storage(self, argument: None) -> None:
        self.stack[-1] = _Thing()


def _check_depth(thing: _Thing) -> None:
    if thing.depth > _DEPTH:
        raise HostilePickleError(f'containers nested more than {_DEPTH} deep')


# What makes as many numbers as it is told to; checkpoints rebuild tensors over their storages.
_ALLOCATING = re.compile(r'torch\.(\w+\.)*\w*(Tensor|Storage)|numpy\.ndarray')
_CALLING_ANOTHER = 'torch._tensor._rebuild_from_type_v2'  # its first argument, with the third
_CONSTANTS = (
    *('NONE', 'NEWFALSE', 'NEWTRUE', 'BININT', 'BININT1', 'BININT2', 'BINFLOAT', 'LONG1'),
    *('BINUNICODE', 'SHORT_BINSTRING'),
)
# All that PyTorch's unpickler follows.
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
