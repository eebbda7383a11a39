"""Starts the program for a test and ends it with it."""

import os
import queue
import resource
import signal
import subprocess
import threading

PATIENCE = 60


class Server:
    """`farpost serve` on a free port; the built-in model unless the arguments name another.

    With `address_space` the process may take so many bytes of it.
    """

    def __init__(self, *arguments, address_space=None):
        command = [os.environ["FARPOST_PROGRAM"], "serve", "--port", "0", *arguments]
        bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=bound if address_space else None,
        )
        self.lines = queue.Queue()
        self.seen = []
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self._wait_for("listening on ").split("listening on ")[1].split()[0]
        self._wait_for("ready: ")

    def _read(self):
        for line in self.process.stderr:
            self.lines.put(line)

    def _wait_for(self, part):
        while True:
            try:
                line = self.lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"{part!r} was not said, but {self.seen}") from None
            self.seen.append(line)
            if part in line:
                return line

    def is_alive(self):
        return self.process.poll() is None

    def said(self):
        """All lines until now."""
        while not self.lines.empty():
            self.seen.append(self.lines.get())
        return self.seen

    def end(self):
        """Ends it in order."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=PATIENCE)
        assert code == 0, f"it ended with {code}: {self.said()[-5:]}"

    @property
    def base_url(self):
        return self.address.rstrip("/") + "/v1"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
