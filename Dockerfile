# mmfocalnet with PyTorch and the maintained forks of OpenMMLab (docs/clusters.md):
#   docker build -t mmfocalnet:cpu .
#   docker build -t mmfocalnet:cuda --build-arg TORCH_BUILD=cu130 .
# The wheels of PyTorch contain CUDA's libraries, so that both use the same small base image.
FROM python:3.11-slim-bookworm

# Triton and torch.compile need a compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# The packages of the lock file. mmcv is built before PyTorch is installed, so it compiles no
# operators.
COPY requirements/build.txt requirements/onedl.txt /tmp/
RUN pip install --no-deps --require-hashes -r /tmp/build.txt \
    && pip install --no-deps --no-build-isolation --require-hashes -r /tmp/onedl.txt

# A folder of https://download.pytorch.org/whl: cpu, cu130, ...
ARG TORCH_BUILD=cpu
RUN pip install torch==2.13.0 --index-url "https://download.pytorch.org/whl/$TORCH_BUILD"

COPY . /opt/mmfocalnet
RUN pip install --no-deps --no-build-isolation -e /opt/mmfocalnet \
    && python -c 'import mmfocalnet, mmdet.models, mmseg.models'

# Any user may run the image: docker run --user "$(id -u):$(id -g)"
ENV HOME=/tmp USER=mmfocalnet TORCH_HOME=/workspace/.cache/torch
RUN useradd --uid 1000 mmfocalnet && install -d -o mmfocalnet /workspace
USER 1000

# Mount a folder here: it has data/, and gets work_dirs/ and downloaded checkpoints.
WORKDIR /workspace
CMD ["bash"]
