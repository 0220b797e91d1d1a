"""What a user can put right."""


class UserError(Exception):
    """Bad input. The message is one line: which file, key or option; what was found; what was expected.

    main prints it on stderr and ends with exit code 2.
    """


def reason(error):
    """What an exception of a library says, as one line; of TensorFlow's reports, the line that matters."""
    text = str(error)
    if hasattr(error, "node_def"):  # tf.errors.OpError: where the operation was made, what happened, the stack again
        text = text.split("\nNode: ")[-1] if "\nNode: " in text else "\n" + text
        text = text.split("\n")[1]
    return " ".join(text.split()) or type(error).__name__
