"""A program in a pseudo-terminal."""

import contextlib
import os
import select
import subprocess
import sys
import time

#: Runs the command line with a pause before each token, so that a test can stop an answer.
SLOW = """
import fcntl, sys, termios, time, tinyllm as tl
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from tinyllm.cli.main import main
run = tl.Model.run
def slow(self, *args, **options):
    time.sleep(0.02)
    return run(self, *args, **options)
tl.Model.run = slow
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """A program that runs in a pseudo-terminal."""

    def __init__(self, arguments, columns=80, **environment):
        import fcntl
        import pty
        import struct
        import termios

        self.fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def until(self, *wanted, seconds=60):
        """Read until one of these texts appears; return everything up to its end."""
        end = time.monotonic() + seconds
        while True:
            for text in wanted:
                if text in self.text:
                    at = self.text.index(text) + len(text)
                    before, self.text = self.text[:at], self.text[at:]
                    return before
            assert time.monotonic() < end, f"no {wanted} in {self.text!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                data = b""
                with contextlib.suppress(OSError):  # the program has ended
                    data = os.read(self.fd, 65536)
                assert data, f"the end before {wanted}: {self.text!r}"
                self.text += data.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text):
        os.write(self.fd, text.encode())

    def status(self):
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                if select.select([self.fd], [], [], 0.05)[0]:
                    os.read(self.fd, 65536)
        return self.process.poll()  # None: it still runs

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
