"""Tests of the QEMU layer."""
