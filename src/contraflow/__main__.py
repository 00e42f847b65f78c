"""``python -m contraflow``: the same as the command ``contraflow``."""

import sys

from contraflow_command import main

if __name__ == "__main__":
    sys.exit(main())
