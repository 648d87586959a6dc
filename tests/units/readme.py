"""What a document tells its reader to type."""

import re
import textwrap

from lab.namespace import CHECKOUT


def blocks(section: str, document: str = "README.md") -> list[str]:
    """Return the indented blocks of a section, each without its indentation."""
    text = (CHECKOUT / document).read_text()
    body = re.split(r"^## ", text, flags=re.MULTILINE)
    (chosen,) = (part for part in body if part.startswith(f"{section}\n"))
    found, block = [], []
    for line in [*chosen.splitlines(), "end"]:
        step = re.match(r"\d\. ", line) is not None
        if line.startswith("    ") and not step:
            block.append(line)
        elif line and block:
            found.append(textwrap.dedent("\n".join(block)).strip())
            block = []
        elif block:
            block.append("")
    return found
