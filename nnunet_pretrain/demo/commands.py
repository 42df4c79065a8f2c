"""Running the workflow's commands one after the other: shown, logged, resumable."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import console_script

_EPOCH = re.compile(r"Epoch (\d+)\s*$")


class Workflow:
    """Runs commands in a workspace and remembers which ones are done.

    Args:
        folder: The workspace; logs go to `logs`, the memory to `steps.json`.
        environment: Variables the commands need beside those of the process.
        show: Called with each line for the user.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], show: Callable[[str], None]) -> None:
        self.folder, self.show = folder, show
        self.environment = {**os.environ, **environment}
        self._memory = folder / "steps.json"
        self.seconds: dict[str, float] = read_json(self._memory) if self._memory.is_file() else {}
        self.commands: list[str] = []

    def run(
        self, command: Sequence[str | Path], *, epochs: int | None = None, resume: Callable[[], bool] | None = None
    ) -> None:
        """Runs a command unless an earlier call finished it.

        Args:
            command: Name of a console script, and its arguments.
            epochs: For a training, the number of epochs, for the progress bar.
            resume: For a training, tells whether it can be continued with --c.

        Raises:
            ValueError: The command failed; the message holds the end of its log.
        """
        text = shlex.join(str(part) for part in command)
        self.commands.append(text)
        number = len(self.commands)
        if text in self.seconds:
            self.show(f"[{number}] done before: {text}")
            return
        if resume is not None and resume():
            command = [*command, "--c"]
        self.show(f"[{number}] $ {shlex.join(str(part) for part in command)}")
        log = self.folder / "logs" / f"{number:02d}_{command[0]}.txt"
        log.parent.mkdir(exist_ok=True)
        started = time.monotonic()
        code = self._stream([console_script(str(command[0])), *map(str, command[1:])], log, epochs)
        if code:
            end = "; ".join(log.read_text(errors="replace").strip().splitlines()[-6:])
            raise ValueError(f"'{text}' failed with exit code {code}; full log in {log}; it ends with: {end}")
        self.seconds[text] = time.monotonic() - started
        write_json(self._memory, self.seconds)

    def _stream(self, command: list[str], log: Path, epochs: int | None) -> int:
        with (
            log.open("w", encoding="utf-8", buffering=1) as file,
            tqdm(total=epochs, unit="epoch", disable=epochs is None, leave=False) as bar,
            subprocess.Popen(
                command,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            ) as process,
        ):
            try:
                for line in process.stdout or ():
                    file.write(line)
                    if match := _EPOCH.search(line):
                        bar.update(int(match[1]) - bar.n)
            except BaseException:
                process.terminate()
                raise
            return process.wait()
