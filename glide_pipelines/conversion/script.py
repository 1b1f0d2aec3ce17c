"""What the conversion scripts share: an error of the user's is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .errors import ConversionError


class ScriptParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def run(self, convert: Callable[..., Any], argv: Sequence[str] | None = None) -> Any:
        """Call a conversion with the parsed arguments.

        Args:
            convert (`Callable`): Takes the options under their own names.
            argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

        Returns:
            What `convert` returns. After an error the process exits with code 2.
        """
        try:
            return convert(**vars(self.parse_args(argv)))
        except ConversionError as error:
            self.error(str(error))
        except OSError as error:  # the cache of downloads, or the folder's own name, cannot be written
            self.error(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
