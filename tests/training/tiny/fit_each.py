"""Runs several commands of `sciml`, one after the other in the same processes: `fit_each.py [[word, ..], ..]`."""

import json
import sys

from sciml.cli import main

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        if code := main(command):
            sys.exit(code)
