# Where the program `internet` runs: it brings nothing but git, whose `http-backend` serves the repositories. The program itself
# is mounted, so that a change of it builds no image.
# Build secret `extra_ca`: a CA bundle for networks that intercept TLS (PI_DOCKER_EXTRA_CA); may be empty.

FROM debian:bookworm-slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=secret,id=extra_ca \
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca >/tmp/ca.pem 2>/dev/null || true; \
    apt=(apt-get -o Acquire::https::CAInfo=/tmp/ca.pem); \
    "${apt[@]}" update; \
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends git; \
    rm -rf /var/lib/apt/lists/* /var/log/* /tmp/*
