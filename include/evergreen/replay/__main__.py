"""python -m include.evergreen.replay calibrate|gate-selftest|time-machine --model NAME"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
from pathlib import Path

from include.evergreen.errors import EvergreenError
from include.evergreen.specs import PROJECT


def main(argv: list[str]) -> int:
    """Dispatch; an error of ours is one message and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m include.evergreen.replay", description=__doc__)
    parser.add_argument("--var", type=Path, default=PROJECT / "var" / "replay", help="where what was done is kept")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("calibrate", "gate-selftest", "time-machine"):
        command = commands.add_parser(name)
        command.add_argument("--model", default="flight_delay")
        if name == "calibrate":
            command.add_argument(
                "--as-of", type=dt.date.fromisoformat, default=None, help="use history before this date"
            )
            command.add_argument("--budget", type=float, default=1.0, help="false alarms a month")
            command.add_argument("--months", type=int, default=40, help="placebo months")
            command.add_argument("--seed", type=int, default=0)
        if name == "gate-selftest":
            command.add_argument("--as-of", type=dt.date.fromisoformat, default=None, help="date of the comparison")
            command.add_argument("--resamples", type=int, default=200)
        if name == "time-machine":
            command.add_argument("--docs", type=Path, default=PROJECT / "docs", help="where the page is written")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine waiting threads would spin
    if arguments.command == "calibrate":
        from include.evergreen.replay import calibration

        return calibration.main(arguments)
    if arguments.command == "gate-selftest":
        from include.evergreen.replay import selftest

        return selftest.main(arguments)
    from include.evergreen.replay import cli

    return cli.main(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EvergreenError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
