"""Brief command-line errors: the fault, and one line about the help."""

import os
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from typing_extensions import override


class BriefArgumentParser(ArgumentParser):
    """Report a fault and where the help is, in two lines without the usage.

    Example:
        >>> parser = BriefArgumentParser(exit_on_error=False)
        >>> _ = parser.add_argument("--epochs", type=int)
        >>> parser.parse_args(["--epochz=3"])
        Traceback (most recent call last):
        ...
        argparse.ArgumentError: unrecognized arguments: --epochz=3; did you mean: --epochs?
    """

    _commands: Any = None

    @override
    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        vars(self).setdefault("_typed", {})[action.dest] = args[-1]
        return action

    @override
    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self._commands = super().add_subcommands(*args, **kwargs)
        return self._commands

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r'Parser key "(.+?)"', self._as_typed, message)
        # An error that is raised instead of printed passes through here twice.
        if message.startswith("unrecognized arguments") and "did you mean" not in message:
            known = {*re.findall(r"--[\w.]+\w", self.format_help())} - {"--help"}
            given = re.findall(r" (--[\w.]+)", message)
            if nearest := [name for typed in given for name in get_close_matches(typed, known)]:
                message += f"; did you mean: {', '.join(nearest)}?"
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        self.logger.error(message)
        commands = self._commands.choices if self._commands else {}
        command = next((name for name in getattr(self, "args", ()) if name in commands), None)
        if message.startswith("the following arguments are required"):
            message = message.replace(f" {command}.", " ")  # users type them without its name
        program = commands.get(command, self).prog.replace(" [options]", "")
        self.exit(2, f"{program}: error: {message}\n`{program} --help` lists the options.\n")

    def _as_typed(self, key: re.Match[str]) -> str:
        return str(vars(self).get("_typed", {}).get(key[1], key[0]))
