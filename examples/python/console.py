"""What a person sees while the program runs: its progress, and one sentence if it fails."""

from __future__ import annotations

import os
import signal
import sys
import time

PROGRAM = os.path.basename(sys.argv[0])
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

REDRAWS_PER_SECOND = 10.0


class Failure(Exception):
    """One sentence for stderr, and the exit status."""

    def __init__(self, sentence, exit_status=1):
        super().__init__(sentence)
        self.exit_status = exit_status


_interrupted = False


def _on_interrupt(signal_number, frame):
    global _interrupted
    _interrupted = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def handle_signals():
    """Lets the loops end the program at a good place; a second Ctrl-C ends it where it stands."""
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def stop_if_interrupted():
    if _interrupted:
        raise Failure("interrupted.", EXIT_INTERRUPTED)


class Progress:
    """A terminal has one line that is redrawn; anything else gets a line where a report is due."""

    def __init__(self):
        self.is_terminal = os.isatty(1)
        self.line_is_open = False

    def start(self, updates, tokens_per_update):
        self.updates = updates
        self.tokens_per_update = tokens_per_update
        self.started_at = time.monotonic()
        self.drawn_at = 0.0
        self.training_seconds = 0.0  # the updates alone, so that evaluations do not count as slow training
        self.validation_loss = None

    def tokens_per_second(self, updates_done):
        return updates_done * self.tokens_per_update / self.training_seconds

    def show(self, updates_done, loss, report_is_due):
        now = time.monotonic()
        redraw = self.is_terminal and now - self.drawn_at >= 1.0 / REDRAWS_PER_SECOND
        if not (report_is_due or redraw):
            return
        seconds_left = int((now - self.started_at) / updates_done * (self.updates - updates_done) + 0.5)
        validation = "" if self.validation_loss is None else f"  validation {self.validation_loss:.4f}"
        line = (
            f"update {updates_done}/{self.updates}  loss {loss:.4f}{validation}  "
            f"{self.tokens_per_second(updates_done):.0f} tokens/s  "
            f"{seconds_left // 60}:{seconds_left % 60:02d} left"
        )
        print(f"\r{line}\033[K" if self.is_terminal else f"{line}\n", end="", flush=True)
        self.line_is_open = self.is_terminal
        self.drawn_at = now

    def end_line(self):
        if self.line_is_open:
            print(flush=True)
            self.line_is_open = False
