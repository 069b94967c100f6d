"""python -m include.evergreen.local up|down|status|sql|ledger|demo|clean"""

from __future__ import annotations

import sys

from include.evergreen.errors import EvergreenError

USAGE = (
    "usage: python -m include.evergreen.local up [--foreground] | down | status | sql QUERY | "
    "ledger [--model NAME] [--kind KIND] [--limit N] | demo [--exit] | clean"
)


def main(argv: list[str]) -> int:
    """Dispatch; an error of ours is one message and exit code 1."""
    name, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if name == "status":
        from include.evergreen.local import status

        return status.main()
    if name == "demo":
        from include.evergreen.local import demo

        return demo.main(arguments)
    if name == "sql":
        from include.evergreen.local import sql
        from include.evergreen.local.layout import Layout

        return sql.main(Layout.from_env(), " ".join(arguments))
    if name == "ledger":
        from include.evergreen.local import ledger
        from include.evergreen.local.layout import Layout

        return ledger.main(Layout.from_env(), arguments)
    if name not in {"up", "down", "clean"} or set(arguments) - {"--foreground"}:
        print(USAGE, file=sys.stderr)
        return 2
    from include.evergreen.local import stack
    from include.evergreen.local.layout import Layout

    layout = Layout.from_env()
    if name == "up":
        return stack.up(layout, foreground="--foreground" in arguments)
    return stack.down(layout) if name == "down" else stack.clean(layout)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EvergreenError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
