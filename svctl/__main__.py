#!/usr/bin/env python3
"""The command svctl: the quick parser where the words are plain, click for all else.

Never imports click itself. This file is installed as the command, not pip's wrapper around `main`: older
versions of pip import re there, which takes half as long as Python itself takes to start.
"""

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    try:
        import _signal as signal  # without the enums that signal makes of its constants
    except ImportError:  # an interpreter that is arranged in another way
        import signal

# What a start makes stays until its end: the collector would look through it for nothing, 0.1 ms each time.
gc.set_threshold(50_000)
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While modules are imported an exception may come where nobody can catch it, and nothing is to undo.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Run svctl with the process's arguments; returns the exit status."""
    try:
        # inside, as a Ctrl-C of an impatient user comes while modules are imported
        from svctl import options, terminal, verbs  # noqa: PLC0415

        if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        terminal.claim_standard_descriptors()
        arguments = sys.argv[1:]
        verb = arguments[0] if arguments else ""
        parsed = options.parse(verb, arguments[1:]) if verb in options.VERBS else None
        if parsed is None:
            from svctl import cli  # noqa: PLC0415 - click costs more than a whole ping

            return cli.main(arguments)
        return verbs.run(verb, *parsed)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    # Everything has been written, by os.write: taking the interpreter down would only take time.
    os._exit(main())
