"""What a user can put right."""


class UserError(Exception):
    """Bad input. The message is one line: which file, key or option; what was found; what was expected.

    main prints it on stderr and ends with exit code 2.
    """
