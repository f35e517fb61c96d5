# The agent's image: pi, git and the two programs of this project. Built by `pi-docker`, or by `docker compose build`.
# Build secret `extra_ca`: a CA bundle for networks that intercept TLS (PI_DOCKER_EXTRA_CA); may be empty.

FROM rust:1.95-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# musl-gcc compiles libgit2 and ring; the official image has it not, an image made for a bare machine may.
RUN --mount=type=secret,id=extra_ca \
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca >/tmp/ca.pem 2>/dev/null || true; \
    if ! command -v musl-gcc >/dev/null; then \
      apt-get -o Acquire::https::CAInfo=/tmp/ca.pem update && \
      apt-get -o Acquire::https::CAInfo=/tmp/ca.pem install -y --no-install-recommends musl-tools && \
      rm -rf /var/lib/apt/lists/*; \
    fi; \
    SSL_CERT_FILE=/tmp/ca.pem rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
# The linker stays rustc's own: musl-gcc as a linker would make the program ask for a dynamic loader.
RUN --mount=type=secret,id=extra_ca \
    --mount=type=cache,id=pi-docker-cargo,target=/usr/local/cargo/registry \
    --mount=type=cache,id=pi-docker-target,target=/src/target \
    target="$(uname -m)-unknown-linux-musl"; \
    export CARGO_HTTP_CAINFO=/tmp/ca.pem "CC_${target//-/_}=musl-gcc"; \
    # The launcher is a member of the workspace, but nothing of it is built here: a change to it leaves this image as it is.
    mkdir -p launcher/src; echo 'fn main() {}' >launcher/src/main.rs; \
    # The cache may hold a build of another clone with newer files: cargo goes by their times.
    find entrypoint subagent -name '*.rs' -exec touch {} +; \
    cargo build --locked --profile pid1 --target "$target" -p pi-entrypoint; \
    cargo build --locked --release --target "$target" -p pi-subagent; \
    install -D -t /out "target/$target/pid1/pi-entrypoint" "target/$target/release/pi-subagent"

FROM node:22-bookworm-slim AS agent
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG EXTRA_PACKAGES=""
RUN --mount=type=secret,id=extra_ca \
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca >/tmp/ca.pem 2>/dev/null || true; \
    apt=(apt-get -o Acquire::https::CAInfo=/tmp/ca.pem); \
    "${apt[@]}" update; \
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends \
      ca-certificates curl fd-find gh git git-lfs jq less patch procps ripgrep $EXTRA_PACKAGES; \
    ln -s /usr/bin/fdfind /usr/local/bin/fd; \
    rm -rf /var/lib/apt/lists/* /var/log/* /tmp/ca.pem

# pi by its version, newest at the time of writing; PI_INTEGRITY pins one that image/pi-packages.sha512 does not know.
ARG PI_VERSION=1.5.2
ARG PI_INTEGRITY=""
RUN --mount=type=secret,id=extra_ca \
    --mount=type=bind,source=image,target=/tmp/image \
    if [ -s /run/secrets/extra_ca ]; then export NODE_EXTRA_CA_CERTS=/run/secrets/extra_ca; fi; \
    /tmp/image/install-pi "$PI_VERSION" "$PI_INTEGRITY"

# No program here may raise its rights, whatever the engine's options are; and nothing but tmpfs is writable by the agent.
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    chmod o-w /var/tmp /run/lock; \
    mkdir -p /workspace /defaults /home/pi /run/pi-git; \
    install -d -m 0700 /run/pi-docker
# HOME is a tmpfs; what package managers put on the PATH there is looked up last.
ENV HOME=/home/pi PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/home/pi/.local/bin
COPY --from=build /out/ /usr/local/bin/
LABEL org.opencontainers.image.title="pi-docker agent" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENTRYPOINT ["/usr/local/bin/pi-entrypoint", "pi"]
