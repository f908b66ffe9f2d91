"""Buffers that hold private bytes and can be overwritten: keys, rows of blocks, vectors, decrypted containers.

Python's `bytes` stay in the heap after they are freed, until something else takes their place. A buffer of this module
is overwritten with zeros before its memory is freed.

Invariants
- A `PrivateBuffer` is overwritten when nothing refers to it any more, views and arrays on it included.
- `PrivateMemory.clear` overwrites every item that it holds and that is still in use.
- A forked child overwrites its copies before it runs other code, and before it closes a file lock (see `forks`).

Not covered: `str` objects, such as the text of a record, and copies that a caller makes (slices of a buffer, `bytes`).

>>> memory = PrivateMemory()
>>> key = memory.keep(PrivateBuffer(b"secret"))
>>> memory.clear()
>>> bytes(key)
b'\\x00\\x00\\x00\\x00\\x00\\x00'
"""

import ctypes
import sys
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from fedmem.storage.forks import watch

Readable = bytes | bytearray | memoryview
"""Bytes that a function only reads."""

_address_of_bytes = ctypes.pythonapi.PyBytes_AsString
_address_of_bytes.argtypes, _address_of_bytes.restype = [ctypes.py_object], ctypes.c_void_p
_address_of_bytearray = ctypes.pythonapi.PyByteArray_AsString
_address_of_bytearray.argtypes, _address_of_bytearray.restype = [ctypes.py_object], ctypes.c_void_p
_set = ctypes.memset  # at the end of the program the module may be gone before its last buffer


class Overwritable(Protocol):
    """An object with private content."""

    def overwrite(self) -> None:
        """Overwrite the content. Calling it twice is fine."""


class PrivateBuffer(bytearray):
    """A bytearray of a fixed size that is overwritten with zeros before its memory is freed.

    A slice is a plain copy, which is not overwritten: take a `memoryview` instead. Its `repr` shows its size only.
    """

    __slots__ = ("__weakref__",)

    def overwrite(self) -> None:
        """Overwrite the content with zeros. Calling it twice is fine."""
        _set(_address_of_bytearray(self), 0, len(self))

    def __del__(self) -> None:
        self.overwrite()

    def __repr__(self) -> str:
        return f"PrivateBuffer({len(self)} bytes)"

    def __str__(self) -> str:
        return repr(self)


Item = TypeVar("Item", bound=Overwritable)


class PrivateMemory:
    """The items with private content of one opened vault. It does not keep an item alive."""

    def __init__(self) -> None:
        self._items: WeakValueDictionary[int, Overwritable] = WeakValueDictionary()
        watch(self)

    def keep(self, item: Item) -> Item:
        """Return `item`, which the next `clear` overwrites if it is still in use then."""
        self._items[id(item)] = item
        return item

    def clear(self) -> None:
        """Overwrite all items that are still in use."""
        for item in list(self._items.values()):
            item.overwrite()

    def disown(self) -> None:
        """Overwrite the copies that a forked child has; those of the parent are left as they are."""
        self.clear()


def moved(data: bytes) -> PrivateBuffer:
    """Return the content of `data` in a buffer, and overwrite `data` itself.

    Args:
        data: new bytes, for example from a random generator, that nothing else refers to. An object that other code
            shares must not be passed: it would change there too.
    """
    buffer = PrivateBuffer(data)
    overwrite_bytes(data)
    return buffer


def overwrite_bytes(data: bytes) -> None:
    """Overwrite bytes in place.

    Args:
        data: new bytes that nothing else refers to (see `moved`).
    """
    if len(data) > 1:  # Python shares one object for each shorter value
        _set(_address_of_bytes(data), 0, len(data))


def overwrite_values(values: dict[str, bytes]) -> None:
    """Empty a dictionary of new `bytes`, such as keys, and overwrite each value that nothing else refers to.

    A value that other code still refers to is left as it is: it could be about to seal something with this key.

    Args:
        values: the dictionary, which is empty afterwards.
    """
    while values:
        _, value = values.popitem()
        if sys.getrefcount(value) == 2:  # the variable, and the argument of `getrefcount`
            overwrite_bytes(value)
