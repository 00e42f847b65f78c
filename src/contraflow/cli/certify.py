"""``contraflow certify``: prove the bound of every block."""

from __future__ import annotations

import json
from collections.abc import Sequence

from contraflow.cli._parser import Parser, command_parser
from contraflow.cli._run import keep_json, open_run


def run(words: Sequence[str]) -> int:
    """Print the certificate and keep it; returns 1 if the flow is not certified."""
    options = parser().parse_args(list(words))
    folder = open_run(options.run)
    _, certificate = folder.flow()
    result = certificate.to_json()
    print(json.dumps(result, indent=2) if options.json else certificate, flush=True)
    keep_json(folder.certificate, result)
    return 0 if certificate.certified else 1


def parser() -> Parser:
    """Return the options of ``contraflow certify``."""
    parser = command_parser(
        "certify",
        "Prove the Lipschitz bound of every block, in float64, and write certificate.json. "
        "The exit code is 1 if a block cannot be certified.",
        examples=["runs/digits", "runs/digits --json | jq .certified"],
    )
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser
