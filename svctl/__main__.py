"""Entry point: the quick parser where the words are plain, click for all else; never imports click itself."""

from __future__ import annotations

import sys


def main() -> int:
    """Run svctl with the process's arguments; returns the exit status."""
    try:
        # inside, as a Ctrl-C of an impatient user comes while modules are imported
        from svctl import options, terminal  # noqa: PLC0415

        terminal.claim_standard_descriptors()
        arguments = sys.argv[1:]
        verb = arguments[0] if arguments else ""
        parsed = options.parse(verb, arguments[1:]) if verb in options.VERBS else None
        if parsed is None:
            from svctl import cli  # noqa: PLC0415 - click costs more than a whole ping

            return cli.main(arguments)
        from svctl import verbs  # noqa: PLC0415

        return verbs.run(verb, *parsed)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
