"""Run bellm in processes that can be killed; see tests.jobs.

`{"start": [ARGUMENT, ...], "log": FILE, "environment": {}}` answers the process id of a fork that is `bellm ARGUMENT
...` with more in its environment; with `"blow"` one that is struck. `{"wait": ID}` answers how it ended, `{"shell":
COMMAND}` how the command ended.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from bellm.cli import app
from tests import jobs

LATE = ("bellm.train.loop", "peft.tuners.lora", "transformers.models.llama.modeling_llama", "torch.utils.tensorboard")
"""What commands import late, for seconds: imported before the forks, it is there for all of them."""


def main() -> None:
    jobs.prepare()
    for module in LATE:
        import_module(module)
    for wish in jobs.wishes():
        if "start" in wish:
            jobs.tell(start(wish))
        elif "wait" in wish:
            jobs.tell(jobs.how_it_ended(wish["wait"]))
        else:
            jobs.tell(subprocess.run(wish["shell"], shell=True, stdout=subprocess.DEVNULL, check=False).returncode)


def start(wish: Mapping[str, Any]) -> int:
    child = jobs.fork()
    if child:
        return child
    os.environ.update(wish["environment"])
    log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if wish["blow"]:
        jobs.strike(wish["blow"])
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
