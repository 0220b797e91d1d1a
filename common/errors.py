"""What a user can put right, and how it is said: in one line."""
import argparse
import os
import reprlib
import signal
import sys


class UserError(Exception):
    """Bad input. The message is one line: which file, key or option; what was found; what was expected.

    `run` prints it on stderr and ends with exit code 2.
    """


def run(main, argv=None):
    """Runs a command, main(argv); returns its exit code: 2 for a user's mistake, 128 + n when signal n stopped it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        code = main(argv) or 0
        print(end="", flush=True)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:  # it was the output, which nobody reads on
            discard_output()
            return 128 + signal.SIGPIPE
        raise


def discard_output():
    """Has what is printed from now on go nowhere, as nobody reads it on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """A parser of options that refuses bad ones with one line, and does not guess at abbreviated ones."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message):
        self.exit(2, f"error: {_one_line(message, 1000)} ({self.prog} --help says more)\n")


def whole_number(most, least=1):
    """The type of an option that takes a whole number from `least` to `most`."""
    def convert(text):
        if not text.isdecimal() or len(text) > 12 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, found {shown(text)}")
        return int(text)
    return convert


def number_above_0(most):
    """The type of an option that takes a number above 0, up to `most`."""
    def convert(text):
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(f"expected a number above 0, up to {most:g}, found {shown(text)}")
        return number
    return convert


def shown(value, length=80):
    """A value of the user's as it stands in a message: on one line, and not long."""
    return _one_line(value if isinstance(value, str) else _repr(value), length)


def reason(error):
    """What an exception of a library says, as one line; of TensorFlow's reports, the line that matters."""
    text = str(error)
    if hasattr(error, "node_def"):  # tf.errors.OpError: where the operation was made, what happened, the stack again
        text = text.split("\nNode: ")[-1] if "\nNode: " in text else "\n" + text
        text = text.split("\n")[1]
    return _one_line(text, 1000) or type(error).__name__


def _one_line(text, length):
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text[:10 * length]).split())
    return text if len(text) <= length else text[:length - 3] + "..."


def _repr(value):
    """repr, but of bounded length and in bounded time: values may hold one another many times over."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 3, 80, 80
    try:
        return brief.repr(value)
    except ValueError:  # Python 3.11 and later do not print whole numbers of thousands of digits
        return type(value).__name__
