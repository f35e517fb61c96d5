# Where the program `internet` runs. Usually it is mounted into the stage `git`, as this machine has built it, so that a change of it
# builds no image; the stage `whole` is for a machine whose own build cannot run here (another system, a newer C library).
# Build secret `extra_ca`: a CA bundle for networks that intercept TLS (PI_DOCKER_EXTRA_CA); may be empty.

FROM debian:bookworm-slim AS git
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=secret,id=extra_ca \
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca >/tmp/ca.pem 2>/dev/null || true; \
    apt=(apt-get -o Acquire::https::CAInfo=/tmp/ca.pem); \
    "${apt[@]}" update; \
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends git; \
    rm -rf /var/lib/apt/lists/* /var/log/* /tmp/*

FROM rust:1.95-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY . .
RUN --mount=type=secret,id=extra_ca \
    --mount=type=cache,id=pi-docker-e2e-cargo,target=/usr/local/cargo/registry \
    --mount=type=cache,id=pi-docker-e2e-target,target=/src/target \
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca >/tmp/ca.pem 2>/dev/null || true; \
    CARGO_HTTP_CAINFO=/tmp/ca.pem cargo build --locked --bin internet; \
    install target/debug/internet /internet

FROM git AS whole
COPY --from=build /internet /internet
