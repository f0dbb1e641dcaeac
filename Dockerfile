# syntax=docker/dockerfile:1
# The four images. Each contains one or two static programs and nothing else:
#   docker build --target operator -t ghcr.io/remoteprocess/operator:0.1.0 .     (likewise agent, cli, bridge)
# `cargo xtask install` builds the same root file systems without a daemon.
ARG RUST_VERSION=1.95

FROM docker.io/library/rust:${RUST_VERSION}-bookworm AS build
ARG TARGETARCH=amd64
RUN apt-get update && apt-get install --yes --no-install-recommends musl-tools && rm -rf /var/lib/apt/lists/*
RUN case "$TARGETARCH" in amd64) t=x86_64 ;; arm64) t=aarch64 ;; *) echo "no build for $TARGETARCH" >&2; exit 1 ;; esac \
    && echo "$t-unknown-linux-musl" > /target && rustup target add "$(cat /target)"
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --target "$(cat /target)" \
      --package remoteprocess-operator --package remoteprocess-agent \
      --package remoteprocess-entrypoint --package remoteprocess-cli --package remoteprocess-bridge \
    && mkdir /out && cd "target/$(cat /target)/release" && cp operator agent entrypoint rproc bridge /out/

FROM scratch AS operator
COPY --from=build /out/operator /operator
USER 65532:65532
ENTRYPOINT ["/operator"]

FROM scratch AS agent
COPY --from=build /out/agent /agent
COPY --from=build /out/entrypoint /entrypoint
USER 65532:65532
ENTRYPOINT ["/agent"]

FROM scratch AS cli
COPY --from=build /out/rproc /rproc
USER 65532:65532
ENTRYPOINT ["/rproc"]

FROM scratch AS bridge
COPY --from=build /out/bridge /bridge
USER 65532:65532
ENTRYPOINT ["/bridge"]
