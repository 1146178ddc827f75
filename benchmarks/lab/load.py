"""What else the machine does: a time taken beside other work compares nothing."""

from __future__ import annotations

import os
import time

# CPUs that others may keep busy before a measurement counts as disturbed.
TOLERATED = 0.1


def busy_seconds() -> float:
    """CPU seconds of everything that runs on this machine, and of what its host has taken away."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class OtherWork:
    """Counts the CPUs that others have kept busy since it was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.before = busy_seconds() - own_seconds()

    def cpus(self) -> float:
        elapsed = time.monotonic() - self.began
        return max(0.0, (busy_seconds() - own_seconds() - self.before) / elapsed)


def wait_until_quiet(patience: float) -> float:
    """Returns the seconds that were waited, at most about `patience`."""
    began = time.monotonic()
    while True:
        other = OtherWork()
        time.sleep(0.5)
        waited = time.monotonic() - began
        if other.cpus() <= TOLERATED or waited >= patience:
            return waited
        time.sleep(2)
