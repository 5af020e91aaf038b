"""The one exception that stands for a user's mistake.

Entry points turn it into a single line on standard error and exit status 2, so a person who
mistypes a key never has to read a traceback; everything else keeps its traceback, because it is
ours to mend.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterable

USER_ERROR_STATUS = 2


class UserError(Exception):
    """A mistake in the input: the message names the file or key, the value and the way out."""


def unknown(what: str, value: object, allowed: Iterable[str], where: str) -> UserError:
    """Build the error for a name that is not among the allowed ones.

    Args:
        what: the kind of thing, such as ``"mixture"``.
        value: what was found.
        allowed: the names that would have been right, in the order to list them.
        where: the file or key that holds the value.
    """
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    return UserError(f"{where}: unknown {what} {value!r}; {hint}allowed: {listed or 'none'}")


def reports_user_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate an entry point so that a UserError ends it in one line, with status 2."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
            sys.stdout.flush()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(USER_ERROR_STATUS) from None
        except BrokenPipeError:
            # Whoever read the output has had enough, as `head` has; Python would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            # A file that cannot be written or read where nothing more could be said of it.
            if error.filename is None:
                raise
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            raise SystemExit(USER_ERROR_STATUS) from None

    return wrapped
