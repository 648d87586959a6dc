"""The section of one disk of the guest."""

from typing import Literal

from pydantic import Field

from coloha.config.section import Section
from coloha.config.values import DiskImage


class Disk(Section):
    """One disk of the guest. Its writes reach the secondary's image as they are made."""

    image: DiskImage = Field(
        description="Image file or block device of this host that holds the disk. Each node needs"
        " one of its own, of the same size; what the other node's held is overwritten when it"
        " becomes the secondary. Relative paths start at this file's folder."
    )
    format: Literal["raw", "qcow2"] = Field(
        description="Format of the image. It is never guessed: a guest that writes to a raw image"
        " could make it look like another one."
    )
    access: Literal["replicated", "read-only"] = Field(
        default="replicated",
        description="What the guest may do. `replicated`: write, and both nodes have a copy."
        " `read-only`: read; both nodes may then name one medium that they share, such as an"
        " installation image. A disk that both share and the guest writes to is not possible: the"
        " secondary's guest runs, too.",
    )
