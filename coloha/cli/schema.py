"""`coloha schema`: print the JSON Schema of the configuration files."""

import argparse
import json

from coloha.cli import exits
from coloha.config import schema

EXAMPLE = """example:
  coloha schema pair > pair.schema.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("file", choices=("host", "pair"), help="which of the two kinds of file")


def call(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    made = schema.host_schema() if arguments.file == "host" else schema.pair_schema()
    print(json.dumps(made, indent=2))
    return exits.OK
