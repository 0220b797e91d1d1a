"""Pickles of plain values and arrays: reads those of strangers, writes indexes that numpy 1 and 2 read.

A pickle is a program that calls what it names. Here it finds stand-ins under the names that numpy's own pickles use.
A stand-in notes what it is called with, which is checked and carried out when all is loaded. Dicts and sets have
stand-ins too: keys can be chosen that take forever to hash, or crash the process.
"""
import contextlib
import functools
import gc
import io
import os
import pickle
import pickletools
import re

import numpy as np

from common.errors import UserError, reason

MAX_SIZE = 2 * 10**9  # bytes; a million people with their joints take a tenth of that
PLAIN_TYPES = {type(None), bool, int, float, str, bytes, bytearray}
# Opcodes whose argument has a fixed size or ends with a line. No number has more than 800 digits.
SIMPLE_OPCODES = re.compile(rb"(?:[()012NRabeilostu\]\x81\x85-\x89\x90\x92-\x94]|[Khq\x80].|M..|[Jjr].{4}|G.{8}|"
                            rb"[FILgp][^\n]{1,800}\n|[SV][^\n]*\n|[ci][^\n]*\n[^\n]*\n){0,10000}", re.DOTALL)
# Opcodes whose argument comes after its length, by the size of this length.
COUNTED_OPCODES = {b"C": 1, b"U": 1, b"\x8a": 1, b"\x8c": 1, b"B": 4, b"T": 4, b"X": 4, b"\x8d": 8, b"\x8e": 8,
                   b"\x96": 8}
# Opcodes that make a dict or set, and what has persistent_load ("Q") make a stand-in of items and the kind instead.
# The length of a frame would be wrong then.
REPLACED_OPCODES = {pickle.EMPTY_DICT: b"]U\x04dict\x86Q", pickle.DICT: b"lU\x04dict\x86Q", pickle.FRAME: b"",
                    pickle.EMPTY_SET: b"]U\x03set\x86Q", pickle.FROZENSET: b"lU\x09frozenset\x86Q"}


def load_plain(path):
    """What the pickle at `path` holds: None, numbers, text, bytes, lists, tuples, sets, dicts and arrays of them.

    Any Python and numpy may have written it. Raises UserError where it is no pickle or names anything else.
    """
    try:
        size = os.path.getsize(path)
        if size > MAX_SIZE:
            raise UserError(f"it is larger than {MAX_SIZE // 10**6} MB")
        with open(path, "rb") as file, _limited_memory(10**8 + 20 * size):
            return _made(_Unpickler(_with_stand_ins(file.read()), encoding="latin1").load(), {})
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}")
    except UserError as error:
        raise UserError(f"{path}: refused, it is no plain data: {error}")
    except RecursionError:
        raise UserError(f"{path}: refused, its values are nested too deeply")
    except MemoryError:
        raise UserError(f"{path}: refused, it is no plain data: it claims more memory than a file of its size needs")
    except Exception as error:  # a damaged pickle fails in any way
        raise UserError(f"{path}: is not a pickle, or a damaged one ({type(error).__name__}: {reason(error)})")


def dump_index(index, path):
    """Writes an index that numpy 1 reads too; numpy 2 alone would name modules that numpy 1 does not have."""
    content, start = pickle.dumps(index, protocol=2), 0
    with open(path, "wb") as file:
        for opcode, name, at in pickletools.genops(content):
            if opcode.name == "GLOBAL" and name.startswith("numpy._core."):
                file.write(content[start:at] + b"cnumpy.core.")
                start = at + len(b"cnumpy._core.")
        file.write(content[start:])


@contextlib.contextmanager
def _limited_memory(size):
    """Lets the process grow by `size` bytes, on Linux: the unpickler sets aside as much as a file claims to need."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    import resource  # Windows has none
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + size
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    collects = gc.isenabled()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
        gc.disable()  # nothing that is loaded is garbage; to look for it takes a third of the time
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if collects:
            gc.enable()


def _with_stand_ins(content):
    """The pickle as a file, with opcodes replaced. Refuses opcodes that plain data does not use."""
    parts, start, at = [], 0, 0
    while content[at:at + 1] != pickle.STOP:
        end = SIMPLE_OPCODES.match(content, at).end()
        code = content[end:end + 1]
        if code in COUNTED_OPCODES:
            argument = end + 1 + COUNTED_OPCODES[code]
            at = argument + int.from_bytes(content[end + 1:argument], "little")
        elif code in REPLACED_OPCODES:
            parts += content[start:end], REPLACED_OPCODES[code]
            at = start = end + (9 if code == pickle.FRAME else 1)
        elif end > at:
            at = end
        elif code.decode("latin1") in pickletools.code2op:
            name = pickletools.code2op[code.decode("latin1")].name
            raise UserError(f"its {name} at byte {at} is cut off or does not belong there")
        else:
            raise ValueError(f"{code!r} at byte {end} is no opcode" if code else "it ends too early")
    return io.BufferedReader(io.BytesIO(b"".join(parts + [content[start:at + 1]])))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in MAKERS:
            raise UserError(f"it names {module}.{name}")
        return _StandIn(known)

    def persistent_load(self, given):
        items, kind = given
        return _StandIn(f"builtins.{kind}", [items])


class _StandIn:
    """Stands for what a file names or, with arguments and perhaps a state, for what a call of that returns."""
    __slots__ = ("name", "arguments", "state")

    def __init__(self, name, arguments=None):
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments):
        return _StandIn(self.name, arguments)

    def __setstate__(self, state):
        if self.arguments is None:
            raise UserError("it changes a function")
        self.state = state

    def __setitem__(self, key, value):
        self.arguments[0].extend((key, value))

    def add(self, item):
        self.arguments[0].append(item)


def _made(value, done):
    """What was loaded, with stand-ins carried out. done: by id, lists and tuples with their results, to be shared."""
    if type(value) in PLAIN_TYPES:
        return value
    if isinstance(value, _StandIn):
        if value.name is not None:
            made = MAKERS[value.name](done, value.state, *value.arguments)
            value.name, value.arguments, value.state = None, None, made
        return value.state
    if id(value) not in done:
        is_plain = PLAIN_TYPES.issuperset(map(type, value))
        if is_plain and len(value) < 100:  # there may be millions
            return value
        done[id(value)] = value, value if is_plain else type(value)([_made(item, done) for item in value])
    return done[id(value)][1]


def _array(done, dtype, content=None, shape=(), order="C"):
    dtype, content = _made(dtype, done), _made(content, done)
    if isinstance(content, str):
        content = content.encode("latin1")  # Python 2
    if not isinstance(dtype, np.dtype) or not isinstance(content, list if dtype.hasobject else (bytes, bytearray)):
        raise UserError("it holds an array, or an empty scalar, of unknown type or content")
    if dtype.kind == "U":  # fails where characters do not exist, or by halves: numpy 1 cannot read those back
        content.decode("utf-32-be" if dtype.str[0] == ">" else "utf-32-le")
    flat = np.empty(len(content), object) if dtype.hasobject else np.frombuffer(content, dtype)
    for i, item in enumerate(content if dtype.hasobject else ()):
        flat[i] = item  # one at a time: numpy 1 would look through all of their items for dimensions
    array = flat.reshape(shape, order=order)  # fails where the sizes differ
    if not array.size and max(array.shape) > 1000:  # nothing, which takes forever to walk through
        raise UserError(f"it holds an empty array of shape {array.shape}")
    return array.copy(order)


def _dtype(done, state, text, *unused):
    if not re.fullmatch("[biufcSU][1-9][0-9]{0,6}|O8?", text):  # numbers, bytes, text and objects; no structures
        raise UserError(f"it holds an array of type {text!r}")
    return np.dtype(text).newbyteorder(state[1] if state and state[1] in ("<", ">") else "=")


def _encoded(done, state, text, encoding):
    if encoding != "latin1":
        raise UserError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _collection(kind, done, state, items=()):
    if not isinstance(items, (list, tuple)) or id(items) in done:  # bytes(10**9) would be a gigabyte
        raise UserError(f"it makes {kind.__name__} of a {type(items).__name__}, or of what it holds elsewhere too")
    items = _made(items, done)
    for key in items[::2] if kind is dict else items:
        is_small = isinstance(key, int) and abs(key) < 2**60  # others can be chosen to have all the same hash
        if not (is_small or key is None or isinstance(key, (str, bytes))):
            raise UserError(f"it has a {type(key).__name__} as a key or in a set")
    return dict(zip(items[::2], items[1::2])) if kind is dict else kind(items)


# By name: what carries out a call, given what is done so far, the state that its result was given, and its arguments.
MAKERS = {f"builtins.{kind.__name__}": functools.partial(_collection, kind) for kind in (bytes, dict, set, frozenset)}
MAKERS.update({
    "numpy.ndarray": None, "numpy.dtype": _dtype, "_codecs.encode": _encoded,
    "numpy.core.multiarray._reconstruct": lambda done, state, *unused: _array(
        done, state[2], state[4], state[1], "F" if state[3] else "C"),
    "numpy.core.multiarray.scalar": lambda done, state, *arguments: _array(done, *arguments)[()],
    "numpy.core.numeric._frombuffer": lambda done, state, content, dtype, *shape: _array(done, dtype, content, *shape)})
