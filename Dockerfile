# The daemon and its QEMU. What it needs of its host, and why the VM ends with the container: docs/security.md,
# "In a container". Build it at the top of the tree: docker build -t coloha .

FROM debian:trixie-slim AS build
# Debian's own updates are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends python3 python3-venv \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.txt ./
# Every package is held against its hash; those that only tests need stay in this stage.
RUN python3 -m venv /build \
  && /build/bin/pip wheel --no-cache-dir --no-deps --require-hashes --requirement requirements.txt --wheel-dir /wheels \
  && /build/bin/pip install --no-cache-dir --no-index --find-links /wheels hatchling
COPY LICENSE README.md pyproject.toml ./
COPY coloha coloha
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
  && python3 -m venv /opt/coloha \
  && /opt/coloha/bin/pip install --no-cache-dir --no-index --find-links /wheels coloha \
  && /opt/coloha/bin/pip uninstall --yes pip

FROM debian:trixie-slim
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends iproute2 libcap2-bin python3 qemu-system-x86 qemu-utils \
  && rm -rf /var/lib/apt/lists/*
# The daemon is not root. It has taps made by `ip`, which gives up what its file allows, but not what it inherits.
RUN install -D -m 0755 "$(command -v setpriv)" /usr/local/libexec/with-net-admin \
  && setcap cap_net_admin+ep /usr/local/libexec/with-net-admin \
  && printf '#!/bin/sh\nexec /usr/local/libexec/with-net-admin --inh-caps=+net_admin --ambient-caps=+net_admin %s "$@"\n' \
    "$(command -v ip)" > /usr/local/bin/ip \
  && chmod 0755 /usr/local/bin/ip \
  && useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/coloha --shell /usr/sbin/nologin coloha \
  && install -d -m 0700 -o coloha -g coloha /run/coloha /var/lib/coloha
COPY --from=build /opt/coloha /opt/coloha
ENV PATH=/opt/coloha/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LABEL org.opencontainers.image.title="coloha" \
  org.opencontainers.image.description="Fault tolerance for QEMU virtual machines: the other half of COLO" \
  org.opencontainers.image.licenses="Apache-2.0"
USER 10001
VOLUME /var/lib/coloha
ENTRYPOINT ["coloha"]
CMD ["run"]
# Whether the daemon answers. `coloha status` would also be unhealthy while the VM is not protected, and whoever replaces an
# unhealthy container would then end the VM's only copy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["coloha", "events", "--pair", "-"]
