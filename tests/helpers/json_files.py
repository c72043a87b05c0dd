"""Changes to JSON files, such as annotations."""

import json
from collections.abc import Callable
from pathlib import Path


def change_json(file: Path, edit: Callable[[dict], object]) -> Path:
    """Edit the content of a JSON file in place; returns the file."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return file
