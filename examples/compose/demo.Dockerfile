# The tracker and the training loop, built from source as `make demo` does it.
FROM rust:1.94-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /heimdall
COPY . .
RUN make setup
CMD ["make", "demo"]
