"""Outlives the supervisor by a moment: when its pipe closes without a farewell, it ends what the supervisor left.

python -m include.evergreen.local.guard STACK_ID < pipe
"""

from __future__ import annotations

import signal
import sys

FAREWELL = b"."


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read(1) != FAREWELL:
        from include.evergreen.local.processes import end

        end(sys.argv[1])


if __name__ == "__main__":
    main()
