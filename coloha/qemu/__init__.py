"""What coloha knows of QEMU: command line, versions, QMP, and the sequences of COLO."""
