"""Certificates, made by openssl."""

import subprocess
from pathlib import Path


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.file = folder / f"{name}.pem"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"),
        )

    def sign(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Make a certificate for this address; return it and its key."""
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
        )
        (self._folder / "extensions").write_text(f"subjectAltName=IP:{address}\n")
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", self.file.name, "-out", f"{name}.pem"),
            *("-CAkey", f"{self._name}.key", "-CAcreateserial", "-extfile", "extensions"),
        )
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(
            ["openssl", *words], cwd=self._folder, check=True, capture_output=True, timeout=60
        )
