"""What a user can put right."""


class UserError(Exception):
    """Bad input. The message is one line: which file, key or option; what was found; what was expected.

    main prints it on stderr and ends with exit code 2.
    """


def shown(value):
    """A value of the user's as it stands in a message: on one line, and not long."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else text[:77] + "..."


def reason(error):
    """What an exception of a library says, as one line; of TensorFlow's reports, the line that matters."""
    text = str(error)
    if hasattr(error, "node_def"):  # tf.errors.OpError: where the operation was made, what happened, the stack again
        text = text.split("\nNode: ")[-1] if "\nNode: " in text else "\n" + text
        text = text.split("\n")[1]
    return " ".join(text.split()) or type(error).__name__
