"""What a user can mend, told apart from what is wrong with the program."""


class InputError(ValueError):
    """A mistake that the user can mend: a value, a file, a combination of settings.

    The message names the value, the place and the remedy. Commands print it as one line and end
    with exit code 2 (:func:`lpd.cli.command`); so they do where the system refuses a file. Every
    other exception is a bug, and shows its traceback.
    """
