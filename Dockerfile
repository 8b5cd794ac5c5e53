# The command line in a container:
#
#     docker build -t unet-batch .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" unet-batch run photos --overlay
#
# On NVIDIA GPUs, whose driver the host brings (NVIDIA Container Toolkit):
#
#     docker build -t unet-batch:gpu --build-arg BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04 .
#     docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" unet-batch:gpu run photos --overlay
#
# pip reads its settings from build arguments, too: with PIP_EXTRA_INDEX_URL set to PyTorch's index of builds for
# CPUs, the first image is smaller by all that GPUs need.
ARG BASE=python:3.11-slim

# Images of NVIDIA come without Python. Ubuntu's versions are those of the day: the base decides, not this file.
FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN python3 -c "import ensurepip" || ( \
    apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* )

# The README's way of installing it
FROM python AS build
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
WORKDIR /opt/unet-batch
COPY . .
RUN python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt .

# Without the sources
FROM python
COPY --from=build /opt/unet-batch/.venv /opt/unet-batch/.venv
ENV PATH=/opt/unet-batch/.venv/bin:$PATH
RUN useradd --create-home --uid 10001 segmenter
USER 10001
WORKDIR /work
ENTRYPOINT ["unet-batch"]
CMD ["--help"]
