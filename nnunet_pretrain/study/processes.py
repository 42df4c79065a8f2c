"""nnU-Net's commands as child processes that can be stopped gently: they finish their step and save."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_pretrain.folders import console_script

END_OF_LOG = 15
"""Lines of a failed command's log that the user sees."""


class Interrupted(Exception):  # noqa: N818 - an order, not an error; never leaves the study
    """The command was stopped because the study stops."""


class Children:
    """The commands that run now; used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Runs a command to its end, with its output appended to a log.

        Args:
            command: Name of a console script of nnU-Net, and its arguments.
            log: The log.
            environment: The command's environment.

        Raises:
            ValueError: The command failed; the message holds the end of the log.
            FileNotFoundError: There is no such command.
            Interrupted: `stop` was called.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # A session of its own: Ctrl-C in the terminal would reach the child as well as the signal of `stop`, and
            # our trainers take the second one for "at once".
            with self._lock:
                if self._stopping:
                    raise Interrupted
                process = subprocess.Popen(
                    [console_script(command[0]), *command[1:]],
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._alive.add(process)
            code = process.wait()
        with self._lock:
            self._alive.discard(process)
        if self._stopping:
            raise Interrupted
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(
                f"'{' '.join(command)}' failed with exit code {code}; correct the cause and run the study again, "
                f"finished runs are kept. Full log in {log}; it ends with: {'; '.join(lines[-END_OF_LOG:])}"
            )

    def stop(self) -> None:
        """Asks all commands to finish their step, save and stop, and starts no more."""
        with self._lock:
            self._stopping = True
            for process in self._alive:
                process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends all commands that still run, with their worker processes."""
        with self._lock:
            for process in self._alive:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
