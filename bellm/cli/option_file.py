"""Options that are given again and again, kept in a file: `bellm --config options.toml embed ...`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bellm.errors import BellmError, SourceError, did_you_mean


def read_option_file(path: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by command and parameter, which click takes where the command line gives none.

    The file is TOML, a table for each command and in it the names of its options without the dashes:

        [embed]
        bidirectional = "last:8"
        max-tokens = 512

    Raises:
        SourceError: The file cannot be read, or is no TOML.
        BellmError: It names a command or an option that is not there.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SourceError(f"{path} (--config) cannot be read as TOML: {reason}") from error
    return {name: _by_parameter(path, name, table, commands) for name, table in tables.items()}


def _by_parameter(path: Path, command: str, table: Any, commands: Mapping[str, Any]) -> dict[str, Any]:
    if command not in commands or not isinstance(table, dict):
        raise BellmError(
            f"{path} (--config) holds {command!r}, which is no table of a command.{did_you_mean(command, commands)} "
            f"Write the name of a command in brackets, such as [embed], and its options below."
        )
    options = [param for param in commands[command].params if param.param_type_name == "option"]
    names = {name.removeprefix("--"): param.name for param in options for name in param.opts if name.startswith("--")}
    for name in table:
        if name not in names:
            raise BellmError(
                f"{path} (--config) gives {command} the option {name!r}, which it does not have."
                f"{did_you_mean(name, names)} bellm {command} --help has its options."
            )
    return {names[name]: value for name, value in table.items()}
