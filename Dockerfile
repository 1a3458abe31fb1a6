# gpt2lab for machines with NVIDIA GPUs. torch contains CUDA; the machine needs the driver and the NVIDIA Container Toolkit.
#
#   docker build -t gpt2lab .
#   docker run --rm --gpus all --ipc host --stop-timeout 300 -v "$PWD:/work" gpt2lab gpt2lab train
#   docker run --rm --gpus all --ipc host --stop-timeout 300 -v "$PWD:/work" gpt2lab \
#       torchrun --standalone --nproc_per_node 8 -m gpt2lab train --config minillm
#
# `docker stop` sends SIGTERM, and training saves. SIGKILL follows after --stop-timeout, and from torchrun after 270 s.
# The default torch is built for CUDA 12.6 and runs with driver 525 or newer. With driver 580 or newer and a GPU of compute
# capability 7.5 or above build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
# If your user id is not 1000, add --user "$(id -u):$(id -g)" to docker run.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# torch.compile compiles small C modules. The versions are those of the Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# torch alone is a layer that later versions of gpt2lab share.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
COPY constraints.txt /opt/
RUN version=$(sed -n 's/^torch==//p' /opt/constraints.txt) \
    && pip install --no-cache-dir -c /opt/constraints.txt "torch==$version+${TORCH_INDEX##*/}" \
        --extra-index-url "$TORCH_INDEX"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    wheel=$(echo /wheels/*.whl) \
    && pip install --no-cache-dir -c /opt/constraints.txt "${wheel}[data,app,track]"
# The user may have any id: what is written is in /work and in HOME.
RUN useradd --uid 1000 --create-home gpt2lab \
    && mkdir /work \
    && chown gpt2lab /work \
    && chmod 1777 /home/gpt2lab
ENV HOME=/home/gpt2lab \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270
USER 1000
WORKDIR /work
EXPOSE 7860
CMD ["gpt2lab", "--help"]
