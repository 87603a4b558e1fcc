"""Pickles of plain data, read without running anything.

Python's unpickler imports and calls what a pickle names. This reads the opcodes (`pickletools`, which only parses) and
builds values from a fixed list of them: lists, tuples, bytes, texts, booleans, whole numbers, None, and numpy arrays of
booleans and bytes. The few names that numpy's arrays are pickled with are known as words and stand for code here;
nothing is ever looked up or called by name, so there is nothing that a pickle could run.
"""

import io
import math
import pickletools
import warnings
from dataclasses import dataclass
from typing import cast

from trainers.image_source import DataError

_DTYPES = ("b1", "u1")
_MOST_SIDES = 32
_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_FROM_BUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
_SCALAR = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_EMPTY = ("__builtin__ bytes", "builtins bytes")
_ARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_KNOWN = (*_RECONSTRUCT, *_FROM_BUFFER, *_SCALAR, *_EMPTY, _ARRAY, _DTYPE, _ENCODE)

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_OLD_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")


class _RefusedError(Exception):
    """The pickle holds something else than plain data."""


class _Mark:
    """Where a list or tuple begins on the stack."""


@dataclass(frozen=True, slots=True)
class _Name:
    """One of the `_KNOWN` names: a word, not what Python would find under it."""

    text: str


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


@dataclass(slots=True)
class PlainArray:
    """A numpy array of bytes ('u1') or booleans ('b1', each byte 0 or 1) in C order; one not filled yet has no type."""

    dtype: str = ""
    raw: bytes = b""
    shape: tuple[int, ...] = (0,)


def read_pickle(content: bytes, name: str) -> object:
    """The plain data in a pickle. `name` is what to call it in an error.

    Arrays come back as `PlainArray`, strings of Python 2 as bytes. Raises `DataError` for anything else, and for
    damaged content.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in what may be no pickle at all
            return _Machine(len(content)).run(content)
    except _RefusedError as error:
        raise DataError(f"{name} holds {error}, which is not plain data; nothing of it was run") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name} is not a whole pickle ({reason}); restore it") from None


class _Machine:
    """The stack and the memory that a pickle's opcodes work on."""

    def __init__(self, size: int) -> None:
        self.stack: list[object] = []
        self.memory: dict[int, object] = {}
        self.allowance = size  # bytes that may be copied: each byte of an honest pickle is copied once

    def run(self, content: bytes) -> object:
        """The value that the pickle ends with."""
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            self._step(opcode.name, argument)
        raise ValueError("it has no end")

    def _step(self, name: str, argument: object) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _BYTES or name in _TEXTS or name in _NUMBERS:
            self.stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _OLD_BYTES:
            self.stack.append(cast(str, argument).encode("latin-1"))
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self.stack) < count:
                raise ValueError("a tuple lacks its items")
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in _PUTS:
            self.memory[cast(int, argument)] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memory[cast(int, argument)])
        else:
            self._other(name, argument)

    def _other(self, name: str, argument: object) -> None:
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MEMOIZE":
                self.memory[len(self.memory)] = self.stack[-1]
            case "MARK":
                self.stack.append(_Mark())
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "LIST":
                self.stack.append(list(self._since_mark()))
            case "TUPLE":
                self.stack.append(tuple(self._since_mark()))
            case "APPEND":
                item = self.stack.pop()
                _list(self.stack[-1]).append(item)
            case "APPENDS":
                items = self._since_mark()
                _list(self.stack[-1]).extend(items)
            case "GLOBAL":
                self.stack.append(_known(cast(str, argument)))
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                if not isinstance(attribute, str) or not isinstance(module, str):
                    raise _RefusedError("a name that is no text")
                self.stack.append(_known(f"{module} {attribute}"))
            case "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self._call(function, arguments))
            case "BUILD":
                state = self.stack.pop()
                _fill(self.stack[-1], state)
            case _:
                raise _RefusedError(f"the instruction {name}")

    def _since_mark(self) -> list[object]:
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise ValueError("a list or tuple has no beginning")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _call(self, function: object, arguments: object) -> object:
        """What numpy would make of a known name and its arguments."""
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _RefusedError("a call of something unknown")
        match function.text, arguments:
            case "_codecs encode", (str(text), "latin1"):
                self._spend(len(text))
                return text.encode("latin-1")
            case name, () if name in _EMPTY:
                return b""
            case "numpy dtype", (str(dtype), *_) if dtype in _DTYPES:
                return _Dtype(dtype)
            case name, (_Name(text="numpy ndarray"), *_) if name in _RECONSTRUCT:
                return PlainArray()
            case name, (bytes(raw), _Dtype() as dtype, tuple(shape), *_) if name in _FROM_BUFFER:
                return _array(raw, dtype, shape)
            case name, (_Dtype(name="b1") as dtype, bytes(raw)) if name in _SCALAR:
                return _array(raw, dtype, (1,)).raw == b"\1"
        raise _RefusedError(f"a call of {function.text} with other arguments than an array of booleans or bytes has")

    def _spend(self, size: int) -> None:
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("it unpacks to more than its own size")


def _fill(target: object, state: object) -> None:
    """What numpy would do with the state of an array or a type."""
    match target, state:
        case _Dtype(), _:
            pass  # of a type of one byte it says nothing more
        case PlainArray(dtype="") as array, (int(), tuple(shape), _Dtype() as dtype, bool(), bytes(raw)):
            filled = _array(raw, dtype, shape)
            array.dtype, array.raw, array.shape = filled.dtype, filled.raw, filled.shape
        case _:
            raise _RefusedError("an object that is no array of booleans or bytes")


def _array(raw: bytes, dtype: _Dtype, shape: tuple[object, ...]) -> PlainArray:
    sides = tuple(side for side in shape if isinstance(side, int) and side >= 0)
    if len(sides) != len(shape) or len(shape) > _MOST_SIDES or math.prod(sides) != len(raw):
        raise ValueError(f"the shape of an array does not fit its {len(raw)} bytes")
    if dtype.name == "b1" and not set(raw) <= {0, 1}:
        raise ValueError("a boolean is neither 0 nor 1")
    return PlainArray(dtype.name, raw, sides)


def _known(text: str) -> _Name:
    if text not in _KNOWN:
        raise _RefusedError(f"the name {text[:100]!r}")
    return _Name(text)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("an item is added to what is no list")
    return value
