"""Run bellm in processes that can be killed: loads once, then forks when standard input says so.

A line is JSON: `{"start": [ARGUMENT, ...], "log": FILE}` prints the process id of a fork that is `bellm ARGUMENT ...`,
with `"die_at"` one that dies around a call that makes a file last, with `"environment"` one in which more is set;
`{"wait": ID}` prints how it ended. `{"shell": COMMAND}` prints how the command ended.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from bellm.cli import app
from tests.corpus.killed import die_at, tell


def main() -> None:
    tell(os.getpid())
    for line in sys.stdin:
        wish = json.loads(line)
        if "start" in wish:
            tell(start(wish))
        elif "wait" in wish:
            _, status = os.waitpid(wish["wait"], 0)
            tell(os.waitstatus_to_exitcode(status))
        else:
            tell(subprocess.run(wish["shell"], shell=True, stdout=subprocess.DEVNULL, check=False).returncode)


def start(wish: Mapping[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update(wish["environment"])
    log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if wish["die_at"]:
        die_at(wish["die_at"])
    code = 0
    try:
        app(wish["start"], prog_name="bellm")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
