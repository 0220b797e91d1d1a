"""Reading pickles of strangers: numpy arrays and plain Python values, and nothing that runs.

A pickle is a program; the standard Unpickler calls whatever it names. This one knows the handful of names that numpy's
own pickles use and answers each with a stand-in of its own, so that not even numpy's code for rebuilding arrays sees
the file. Any other name is refused.
"""
import io
import os
import pickle
import struct
import sys

import numpy as np

from common.errors import UserError, reason

# Plain types, of numbers, text and bytes; no structures, no pointers except "O", whose elements are pickled themselves.
PLAIN_KINDS = "biufcSUO"
MAX_SIZE = 2 * 10**9  # bytes; a million people with their joints take a tenth of that


def load_plain(path):
    """What the pickle at `path` holds: None, numbers, text, bytes, lists, tuples, sets, dicts and arrays of them.

    Written by any Python and numpy. Raises UserError where it is no pickle or names anything else.
    """
    try:
        if os.path.getsize(path) > MAX_SIZE:
            raise UserError(f"{path}: expected at most {MAX_SIZE // 10**6} MB, found more")
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}")
    try:
        return _finished(_PlainUnpickler(content).load(), {})
    except _Refused as error:
        raise UserError(f"{path}: refused, it is no plain data: {error}")
    except RecursionError:
        raise UserError(f"{path}: refused, its values are nested too deeply")
    except MemoryError:
        raise UserError(f"{path}: refused, it claims more memory than there is")
    except Exception as error:  # a damaged pickle fails in any way
        raise UserError(f"{path}: is not a pickle, or a damaged one ({type(error).__name__}: {reason(error)})")


class _Refused(Exception):
    pass


# The unpickler in Python, not the one in C: the latter sets aside as much memory as a pickle claims to need.
class _PlainUnpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="latin1")
        # Of what calls make: an object array takes 8 bytes where the pickle may take 2. What is far more is made over and
        # over of the same bytes.
        self.bytes_left = 10**6 + 10 * len(content)

    def count(self, made):
        """Takes note of what a call has made."""
        if isinstance(made, _Array):
            made = made.value
        self.bytes_left -= made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
        if self.bytes_left < 0:
            raise _Refused("it makes much more than it holds")

    def find_class(self, module, name):
        try:
            return _STAND_INS[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise _Refused(f"it names {module}.{name}")

    def persistent_load(self, pid):
        raise _Refused("it refers to something outside of itself")


def _load_bytearray(unpickler):
    """As in pickle, but for its setting aside as much as is claimed."""
    length, = struct.unpack("<Q", unpickler.read(8))
    content = unpickler.read(length) if length <= sys.maxsize else b""
    if len(content) < length:
        raise EOFError("it ends within a bytearray")
    unpickler.append(bytearray(content))


def _load_build(unpickler):
    """BUILD gives an object its state: that of a stand-in only, for functions and classes have states too."""
    if not isinstance(unpickler.stack[-2], (_Dtype, _Array)):
        raise _Refused(f"it changes a {type(unpickler.stack[-2]).__name__}")
    pickle._Unpickler.load_build(unpickler)
    unpickler.count(unpickler.stack[-1])


def _load_reduce(unpickler):
    pickle._Unpickler.load_reduce(unpickler)
    unpickler.count(unpickler.stack[-1])


def _load_long4(unpickler):
    """Whole numbers that take minutes to print are no plain data."""
    length, = struct.unpack("<i", unpickler.read(4))
    if not 0 <= length < 256:
        raise _Refused(f"it holds a whole number of {length} bytes")
    unpickler.append(pickle.decode_long(unpickler.read(length)))


def _with_short_line(load, length):
    """A number in decimal digits, for which Python needs quadratic time."""
    def checked(unpickler):
        readline = unpickler.readline
        unpickler.readline = lambda: _short(readline(), length)
        try:
            load(unpickler)
        finally:
            unpickler.readline = readline
    return checked


def _short(line, length):
    if len(line) > length:
        raise _Refused(f"it holds a number of {len(line)} digits")
    return line


def _with_plain_keys(load, keys):
    """Keys are hashed: of tuples that hold one another many times over, that takes forever, and whole numbers can be
    chosen to have all the same hash.
    """
    def checked(unpickler):
        _check_keys(keys(unpickler.stack))
        load(unpickler)
    return checked


def _check_keys(keys):
    for key in keys:
        if not (key is None or isinstance(key, (str, bytes)) or isinstance(key, int) and abs(key) < 2**60):
            raise _Refused(f"it has a {type(key).__name__} as a key or in a set")


def _all(stack):
    return stack


def _every_other(stack):
    return stack[::2]


_BYTEARRAY8 = 0x96  # protocol 5, which Python 3.7 does not know
_dispatch = _PlainUnpickler.dispatch
_dispatch[_BYTEARRAY8] = _load_bytearray
_dispatch[pickle.BUILD[0]] = _load_build
_dispatch[pickle.LONG4[0]] = _load_long4
_dispatch[pickle.REDUCE[0]] = _load_reduce
for _code, _length in ((pickle.INT, 800), (pickle.LONG, 800), (pickle.GET, 12), (pickle.PUT, 12)):
    _dispatch[_code[0]] = _with_short_line(_dispatch[_code[0]], _length)
for _code, _keys in ((pickle.SETITEM, lambda stack: stack[-2:-1]), (pickle.SETITEMS, _every_other),
                     (pickle.DICT, _every_other), (pickle.ADDITEMS, _all), (pickle.FROZENSET, _all)):
    _dispatch[_code[0]] = _with_plain_keys(_dispatch[_code[0]], _keys)


class _Dtype:
    """Stands for numpy.dtype(text, align, copy)."""

    def __init__(self, text, *unused):
        self.text = text.decode() if isinstance(text, bytes) else str(text)
        self.order = "="

    def __setstate__(self, state):
        self.order = state[1].decode() if isinstance(state[1], bytes) else state[1]

    def dtype(self):
        if self.text[:1] not in PLAIN_KINDS or not (self.text == "O" or self.text[1:].isdigit() or self.text == "O8"):
            raise _Refused(f"it holds an array of type {self.text!r}")
        dtype = np.dtype(self.text)
        return dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype


class _Array:
    """Stands for an array until its state has come."""

    def __init__(self, *unused):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, content = state
        self.value = _array(content, dtype, shape, "F" if fortran_order else "C")


def _array(content, dtype, shape, order="C"):
    if not isinstance(dtype, _Dtype):
        raise _Refused("it holds an array of no known type")
    dtype = dtype.dtype()
    if dtype.hasobject:
        if not isinstance(content, list):
            raise _Refused("it holds an array of raw pointers")
        flat = np.empty(len(content), object)
        for i, item in enumerate(content):
            flat[i] = item
    else:
        if isinstance(content, str):
            content = content.encode("latin1")  # Python 2
        # As many values as there are bytes for, whatever the shape claims; reshape refuses a shape that differs.
        flat = np.frombuffer(content, dtype)
        characters = np.frombuffer(content, np.dtype("u4").newbyteorder(dtype.byteorder)) if dtype.kind == "U" else None
        if characters is not None and characters.size and characters.max() > sys.maxunicode:
            raise _Refused("it holds text of characters that do not exist")
    array = flat.reshape(shape, order=order)
    if not array.size and max(array.shape) > 1000:  # zero bytes that take forever to walk through
        raise _Refused(f"it holds an empty array of shape {array.shape}")
    return array


def _array_from_buffer(content, dtype, shape, order):
    if not isinstance(content, (bytes, bytearray)):  # bytes(10**9) would be a gigabyte
        raise _Refused(f"it makes an array of a {type(content).__name__}")
    return _array(bytes(content), dtype, shape, order)


def _scalar(dtype, content=None):
    if content is None:
        raise _Refused("it holds an empty scalar")
    return _array([content] if isinstance(dtype, _Dtype) and dtype.text == "O" else content, dtype, (1,))[0]


def _encode(text, encoding):
    """Python 3 writes bytes in protocols 0 to 2 as text to be encoded so."""
    if encoding != "latin1":
        raise _Refused(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _from_list(kind):
    """Stands for bytes, set or frozenset, which Python 2 and early protocols write as a call with a list."""
    def make(items=()):
        if not isinstance(items, (list, tuple)):  # bytes(10**9) would claim a gigabyte
            raise _Refused(f"it calls {kind.__name__} with a {type(items).__name__}")
        if kind is not bytes:
            _check_keys(items)
        return kind(items)
    return make


_STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("_codecs", "encode"): _encode,
}
_STAND_INS.update({(module, kind.__name__): _from_list(kind) for module in ("builtins", "__builtin__")
                   for kind in (bytes, set, frozenset)})


def _finished(value, seen):
    """The value with its arrays in the place of their stand-ins; `seen` keeps what is referred to twice shared."""
    if id(value) in seen:
        return seen[id(value)][0]
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refused("it holds an array without content")
        result = value.value
        if result.dtype.hasobject:
            for i, item in enumerate(result.flat):  # one at a time: a list of arrays would be spread out
                result.flat[i] = _finished(item, seen)
    elif isinstance(value, dict):
        result = {_finished(k, seen): _finished(v, seen) for k, v in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)([_finished(item, seen) for item in value])
    elif isinstance(value, _Dtype):
        result = value.dtype()
    else:
        result = value
    seen[id(value)] = result, value  # the value too, so that its id stays its own
    return result
