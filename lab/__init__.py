"""The lab: hosts, networks, a guest and clients, all on one machine."""
